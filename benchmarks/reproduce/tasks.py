"""Work of a reproduction, described so that another process can do it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from benchmarks.reproduce.papers import PAPERS
from robust_core.plan import Beginning
from robust_core.session import execute, resume
from robust_core.training import RunDirectory

__all__ = ["Inquiry", "Piece", "Task", "carry_out", "settings_of"]


@dataclass(frozen=True)
class Inquiry:
    """The examination of a finished run by attacks that know its defence."""

    paper: str
    title: str
    path: Path
    sources: tuple[tuple[str, Path], ...]
    scale: str
    threads: int
    donor: Path | None = None


@dataclass(frozen=True)
class Task:
    """A run at ``path``: a row, or with ``phases`` a beginning of so many phases that rows share.

    ``donor`` is the run whose end this one starts from.
    """

    paper: str
    title: str
    config: Any
    path: Path
    phases: int = 0
    donor: Path | None = None
    force: bool = False


Piece: TypeAlias = Inquiry | Task


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide a result: all but places and the machine's."""
    places = (
        "run_dir",
        "data_dir",
        "root_dir",
        "cache_dir",
        "device",
        "no_cuda",
        "threads",
        "tensorboard",
        "log_interval",
        "checkpoint_every",
    )
    return {name: value for name, value in config.items() if name not in places}


def carry_out(task: Piece) -> Piece:
    """Do one piece of work; returns it."""
    if isinstance(task, Task):
        _train(task)
    else:
        torch.set_num_threads(task.threads)
        examine = PAPERS[task.paper].examine
        assert examine is not None
        print(f"[{task.title}] attacks that know the defence", flush=True)
        examine(task.path, dict(task.sources), task.scale)
    return task


def _train(task: Task) -> None:
    """Begin a run, continue it, or take it as it is if it is finished with the same settings."""

    def say(text: str) -> None:
        print(f"[{task.title}, seed {task.config.seed}] {text}", flush=True)

    plan: Any = PAPERS[task.paper].plan
    if task.phases:
        plan = Beginning(plan, task.phases)
    if not task.force and (task.path / "config.json").exists():
        present = RunDirectory.open(task.path).record["config"]
        # a beginning is named by all that decides it, whichever row it was begun for
        wanted = json.loads(json.dumps(task.config.to_dict()))
        if task.phases or settings_of(present) == settings_of(wanted):
            resume(task.config, plan, task.path, say=say)
            return
    execute(task.config, plan, task.path, overwrite=True, fork_from=task.donor, say=say)
