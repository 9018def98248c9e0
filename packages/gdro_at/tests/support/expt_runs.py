"""Runs of ``run_expt.py`` of a few steps, and what they leave behind."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from runs import undrawn

from gdro_at.cli import run_expt

QUICK = [
    *("--model", "resnet8-s2", "--image-size", "32", "--train_from_scratch", "--batch_size", "8"),
    *("--n_epochs", "2", "--attack_iters", "1", "--threads", "1", "--precision", "float32"),
    *("--log_interval", "1", "--lr", "0.02", "--epsilon", "2/255", "--test_images", "4"),
]
"""The first four test images of the tables on disk are one of each group."""
WATERBIRDS = [
    *("-s", "confounder", "-d", "CUB", "-t", "waterbird_complete95", "-c", "forest2water2"),
    *QUICK,
    *("--root_dir",),
]
GDRO = ["--train_type", "trades", "--test_type", "pgd", "--robust", "--trades_new", "--train_grad"]
GDRO += ["--limit_nat", "--limit_adv", "--reweight_groups", "--generalization_adjustment", "2"]


def run_undrawn(words: Sequence[str]) -> int:
    """Run the script without the pictures of its report, which take longer than the rest."""
    with patch("robust_core.session.write_report", undrawn):
        return run_expt(words)


def metrics(run: Path, kind: str) -> list[dict[str, Any]]:
    """Return the lines of one kind."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf8").splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def finished(run: Path) -> dict[str, Any]:
    """Return what the run ended with."""
    found: dict[str, Any] = json.loads((run / "finished.json").read_text(encoding="utf8"))
    return found


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV log."""
    with path.open(newline="", encoding="utf8") as stream:
        return list(csv.DictReader(stream))


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Return a state dict, read without executing anything."""
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return state


def last_checkpoint(run: Path) -> dict[str, Any]:
    """Return the newest checkpoint."""
    newest = max((run / "checkpoints").glob("step-*.pt"))
    state: dict[str, Any] = torch.load(newest, weights_only=True)
    return state


def equal(first: Any, second: Any) -> bool:
    """Return whether two nested states are equal to the bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[name], second[name]) for name in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)
