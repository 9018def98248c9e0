"""What a run directory holds, read leniently: what is missing or damaged is said, not raised."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robust_core.errors import UserError
from robust_core.evaluation import Check, Examination, load_checks, load_evaluation, load_examination
from robust_core.evaluation.keeping import PARTIAL

__all__ = ["ADAPTIVE", "RunFiles", "read_run"]

ADAPTIVE = "adaptive"
"""Folder of a run that holds what attacks that know the network found."""
KNOWN = ("config.json", "metrics.jsonl", "evaluation", "gallery.npz")


@dataclass
class RunFiles:
    """The contents of one run; ``problems`` are sentences about what is missing or cannot be read."""

    path: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    examination: Examination | None = None
    sanity: list[Check] = field(default_factory=list)
    gallery: dict[str, NDArray[Any]] | None = None
    problems: list[str] = field(default_factory=list)


def read_run(run_dir: str | Path) -> RunFiles:
    """Return what lies in a run directory; ``UserError`` if it is not one at all."""
    path = Path(run_dir)
    if not path.is_dir():
        raise UserError(f"'{path}' is not a directory: give the run directory that training wrote.")
    if not any((path / name).exists() for name in KNOWN):
        raise UserError(
            f"'{path}' is not a run directory: expected at least one of {', '.join(KNOWN)} in it."
        )
    run = RunFiles(path)
    run.config = _read_config(run)
    metrics = _read_lines(run, "metrics.jsonl", "there are no learning curves")
    run.steps = [line for line in metrics if line.get("kind") == "step"]
    run.epochs = [line for line in metrics if line.get("kind") == "epoch"]
    run.timings = _read_lines(run, "timings.jsonl", "nothing is known of speed and memory")
    _read_evaluations(run)
    _read_examination(run)
    _read_gallery(run)
    return run


def _read_config(run: RunFiles) -> Mapping[str, Any]:
    path = run.path / "config.json"
    if not path.is_file():
        run.problems.append("config.json is missing: the settings of this run are not known.")
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        run.problems.append(f"config.json cannot be read ({error}).")
        return {}
    if isinstance(config, Mapping):
        return config
    run.problems.append("config.json holds no settings (expected a JSON object).")
    return {}


def _read_lines(run: RunFiles, name: str, consequence: str) -> list[dict[str, Any]]:
    """JSON lines of a file; a last line without its end is what a killed run leaves."""
    path = run.path / name
    if not path.is_file():
        run.problems.append(f"{name} is missing: {consequence}.")
        return []
    lines, damaged = [], 0
    for text in path.read_text(encoding="utf8", errors="replace").splitlines():
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict):
            lines.append(line)
        else:
            damaged += 1
    if damaged:
        run.problems.append(f"{name}: {damaged} line(s) could not be read and were left out.")
    return lines


def _read_evaluations(run: RunFiles) -> None:
    folder = run.path / "evaluation"
    names = sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []
    for name in names:
        if name.endswith(PARTIAL):
            run.problems.append(
                f"The evaluation '{name.removesuffix(PARTIAL)}' was not finished, or not yet; it goes on "
                "where it stopped when the command is given again."
            )
            continue
        try:
            run.evaluations[name] = load_evaluation(folder, name).summary()
        except UserError as error:
            run.problems.append(str(error))
    if not names:
        run.problems.append("There is no evaluation: the run was not evaluated, or not yet.")


def _read_examination(run: RunFiles) -> None:
    """Read what attacks that know the network found; most runs have nothing of the kind."""
    folder = run.path / ADAPTIVE
    try:
        known = {summary["weights"] for summary in run.evaluations.values()} or {""}
        run.examination = load_examination(folder, known.pop() if len(known) == 1 else "")
        if run.examination is not None and (folder / "sanity.json").exists():
            run.sanity = load_checks(folder / "sanity.json")
    except UserError as error:
        run.problems.append(str(error))


def _read_gallery(run: RunFiles) -> None:
    path = run.path / "gallery.npz"
    if not path.is_file():
        run.problems.append("gallery.npz is missing: there are no images to show.")
        return
    try:
        with np.load(path, allow_pickle=False) as stored:
            run.gallery = {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        run.problems.append(f"gallery.npz cannot be read ({error}).")
