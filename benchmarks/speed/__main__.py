"""Measure ours against what people use instead: both sides in one run, in turns, results compared first.

(a) PART's attack of ten steps against the published loop, (b) PGD-10 against the attack libraries, (c) masks
against torchcam and PIL, (d) loading against a torchvision DataLoader, all with ResNet-18, batch 128, in evaluation
mode; ANCRA's (e) choice of negatives and (f) contrast against plain Python, (g) training step against its passes;
(h) an epoch from decoded images on disk against decoding JPEGs.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.speed import ancra_step, decoding, libraries, loading, masks, negatives, part_attack
from benchmarks.speed.record import default_path, describe_machine, write_record
from benchmarks.speed.rows import Row, markdown
from benchmarks.speed.setting import Setting, bf16_note, make_setting, say

COMPARISONS: dict[str, Callable[[Setting], list[Row]]] = {
    "a": part_attack.compare,
    "b": libraries.compare,
    "c": masks.compare,
    "d": loading.compare,
    "e": negatives.compare_choices,
    "f": negatives.compare_contrasts,
    "g": ancra_step.compare,
    "h": decoding.compare,
}


def _parts(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in parts if part not in COMPARISONS]
    if unknown or not parts:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of {', '.join(COMPARISONS)}, such as a,c")
    return parts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--only", type=_parts, default=list(COMPARISONS), help="comparisons, such as a,c")
    parser.add_argument("--batch", type=int, default=None, help="images in a batch (128)")
    parser.add_argument("--steps", type=int, default=None, help="attack steps (10)")
    parser.add_argument("--model", default="resnet18", help="network (resnet18)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch (its own choice)")
    parser.add_argument("--seconds", type=float, default=None, help="time to spend on rounds in all (800)")
    parser.add_argument("--compile", action="store_true", help="add a column with the compiled view")
    parser.add_argument("--quick", action="store_true", help="batch 16, 2 steps, few rounds, no record")
    parser.add_argument("--out", type=Path, default=None, help="the record (benchmarks/results/speed-*.json)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen comparisons, print the table and write the record; 1 if a comparison is void."""
    options = _parser().parse_args(arguments)
    begin = time.perf_counter()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    settings = {
        "model": options.model,
        "batch": options.batch or (16 if options.quick else 128),
        "steps": options.steps or (2 if options.quick else 10),
        "compile": options.compile,
        "seconds": options.seconds or (20.0 if options.quick else 800.0),
        "least_rounds": 2 if options.quick else 3,
    }
    machine = describe_machine(device)
    say(f"{machine['processor']}, {machine['threads']} threads, torch {machine['software']['torch']}")
    say(bf16_note(device))
    times = "2 times or more" if options.quick else "3 times or more (slow: 2)"
    say(f"plan: {', '.join(options.only)}; {settings['seconds']:.0f} s of rounds, a side {times}")
    setting = make_setting(device=device, **settings)
    rows: list[Row] = []
    for part in options.only:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the other libraries' own
            rows += COMPARISONS[part](setting)
    say(f"\n{markdown(rows)}\n\n{time.perf_counter() - begin:.0f} s in all; {bf16_note(device)}")
    if options.out or not options.quick:
        path = options.out or default_path(machine)
        write_record(path, machine, settings | {"parts": options.only, "device": str(device)}, rows)
        say(f"record: {path}")
    return 1 if any(row.verdict.startswith("void") for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
