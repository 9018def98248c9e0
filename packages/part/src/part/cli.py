"""The three published scripts: parse, build, run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from part.config import PartConfig, canonical, resolve
from part.plan import PartPlan, autoattack_missing
from robust_core.cli import Parser, add_flags, guarded, normalise_flags
from robust_core.config import config_from_dict
from robust_core.errors import UserError
from robust_core.session import execute, resume
from robust_core.training import RunDirectory

__all__ = ["train_eval_part", "train_eval_part_m", "train_eval_part_t"]

PUBLISHED_FLAGS = (
    *("--batch-size", "--epochs", "--weight-decay", "--wd", "--lr", "--momentum", "--no-cuda", "--epsilon"),
    *(
        "--low-epsilon",
        "--num-steps",
        "--num-class",
        "--step-size",
        "--beta",
        "--adjust-first",
        "--adjust-second",
    ),
    *(
        "--rand-init",
        "--pre-trained",
        "--seed",
        "--log-interval",
        "--model-dir",
        "--save-freq",
        "--save-weights",
    ),
    *("--data", "--model", "--warm-up", "--cam", "--attack"),
)

EPILOG = """
Without flags the script trains and tests as published, with known faults corrected (README, 'official or
corrected'); --official restores them. Budgets may be written as fractions: --epsilon 8/255. The run directory
holds config.json, metrics.jsonl, checkpoints, evaluation and report/report.html.
"""


def _parser(name: str, methods: tuple[str, ...]) -> argparse.ArgumentParser:
    parser = Parser(
        prog=name,
        description=f"Train and evaluate {methods[0].upper()} (pixel-reweighted adversarial training, ICML 2024) "
        f"or a baseline of it: --method {', '.join(methods)}.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "--resume", metavar="RUN_DIR", help="continue the run in this directory; needs no other flag"
    )
    parser.add_argument("--overwrite", action="store_true", help="start anew where a run lies already")
    add_flags(parser, PartConfig, {"method": methods})
    return parser


def _differing(stored: PartConfig, given: dict[str, Any]) -> list[str]:
    return [
        f"--{name.replace('_', '-')} {value} (the run has {getattr(stored, name)})"
        for name, value in canonical(given).items()
        if name != "run_dir" and getattr(stored, name) != value
    ]


def _resume(name: str, methods: tuple[str, ...], path: Path, given: dict[str, Any]) -> None:
    stored = config_from_dict(PartConfig, RunDirectory.open(path).record["config"])
    if stored.method not in methods:
        raise UserError(
            f"{path} holds a run of {stored.method}, which {name} does not train; resume it with the script "
            "that began it."
        )
    if differing := _differing(stored, given):
        raise UserError(
            f"--resume continues {path} with its own settings, but the command line asks for "
            f"{'; '.join(differing)}. Leave these out, or start a new run in another --run-dir."
        )
    resume(stored, PartPlan(), path)


def _run(name: str, methods: tuple[str, ...], arguments: Sequence[str] | None) -> int:
    import sys

    parser = _parser(name, methods)
    given = vars(
        parser.parse_args(normalise_flags(sys.argv[1:] if arguments is None else arguments, PUBLISHED_FLAGS))
    )
    resumed, overwrite = given.pop("resume"), given.pop("overwrite")

    def body() -> None:
        if resumed is not None and overwrite:
            raise UserError("--resume continues a run and --overwrite begins it anew; leave one of them out.")
        if resumed is not None:
            _resume(name, methods, Path(resumed), given)
            return
        config, notes = resolve(given, method=methods[0])
        if config.aa_images and autoattack_missing():
            remedy = "pip install 'packages/part[eval]'"
            if "aa_images" in given:
                raise UserError(f"--aa-images {config.aa_images} needs the package pyautoattack: {remedy}.")
            notes.append(f"AutoAttack will not be run: its package is not installed ({remedy}).")
        for note in notes:
            print(note)
        print("settings: " + "  ".join(f"{key}={value}" for key, value in config.to_dict().items()))
        execute(config, PartPlan(), Path(str(config.run_dir)), overwrite=overwrite)

    return guarded(body)


def train_eval_part(arguments: Sequence[str] | None = None) -> int:
    """Run ``train_eval_part.py``: PART, AT or natural training; returns the exit code."""
    return _run("train_eval_part.py", ("part", "at", "natural"), arguments)


def train_eval_part_t(arguments: Sequence[str] | None = None) -> int:
    """Run ``train_eval_part_t.py``: PART-T or TRADES; returns the exit code."""
    return _run("train_eval_part_t.py", ("part-t", "trades"), arguments)


def train_eval_part_m(arguments: Sequence[str] | None = None) -> int:
    """Run ``train_eval_part_m.py``: PART-M or MART; returns the exit code."""
    return _run("train_eval_part_m.py", ("part-m", "mart"), arguments)
