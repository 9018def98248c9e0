"""The three published scripts: parse, build, run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from part.config import PartConfig, canonical, resolve
from part.plan import PartPlan
from robust_core.errors import UserError
from robust_core.script import TrainingScript

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


def _script(name: str, methods: tuple[str, ...]) -> TrainingScript[PartConfig]:
    """Return the script that trains these methods, the first of them unless told otherwise."""

    def resolved(given: Mapping[str, Any]) -> tuple[PartConfig, list[str]]:
        return resolve(given, method=methods[0])

    def check_resumed(stored: PartConfig, path: Path) -> None:
        if stored.method not in methods:
            raise UserError(
                f"{path} holds a run of {stored.method}, which {name} does not train; resume it with the script "
                "that began it."
            )

    return TrainingScript(
        name=name,
        description=f"Train and evaluate {methods[0].upper()} (pixel-reweighted adversarial training, ICML 2024) "
        f"or a baseline of it: --method {', '.join(methods)}.",
        epilog=EPILOG,
        kind=PartConfig,
        plan=PartPlan(),
        resolve=resolved,
        canonical=canonical,
        check_resumed=check_resumed,
        choices={"method": methods},
        published=PUBLISHED_FLAGS,
    )


def train_eval_part(arguments: Sequence[str] | None = None) -> int:
    """Run ``train_eval_part.py``: PART, AT or natural training; returns the exit code."""
    return _script("train_eval_part.py", ("part", "at", "natural"))(arguments)


def train_eval_part_t(arguments: Sequence[str] | None = None) -> int:
    """Run ``train_eval_part_t.py``: PART-T or TRADES; returns the exit code."""
    return _script("train_eval_part_t.py", ("part-t", "trades"))(arguments)


def train_eval_part_m(arguments: Sequence[str] | None = None) -> int:
    """Run ``train_eval_part_m.py``: PART-M or MART; returns the exit code."""
    return _script("train_eval_part_m.py", ("part-m", "mart"))(arguments)
