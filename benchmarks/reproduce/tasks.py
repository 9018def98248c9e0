"""One training of a reproduction, described so that another process can do it."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.reproduce.papers import PAPERS
from robust_core.session import Beginning, execute, resume
from robust_core.training import RunDirectory
from robust_core.workers import begin_worker

__all__ = ["Inquiry", "Task", "carry_out", "carry_out_all", "settings_of"]


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


Work = TypeVar("Work", Task, Inquiry)


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


def carry_out(task: Work) -> Work:
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


def carry_out_all(tasks: Sequence[Work], jobs: int) -> Iterator[Work]:
    """Carry out tasks in ``jobs`` processes, each after its donor if that is among them; yields each when done."""
    waiting, done = list(tasks), set[Path]()
    paths = {task.path for task in tasks}

    def ready() -> list[Work]:
        found = [task for task in waiting if task.donor not in paths or task.donor in done]
        for task in found:
            waiting.remove(task)
        return found

    if jobs == 1:
        while batch := ready():
            for task in batch:
                yield carry_out(task)
                done.add(task.path)
        return
    # spawned: a forked process would inherit torch's threads in an unknown state
    with ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=begin_worker
    ) as pool:
        running = {pool.submit(carry_out, task) for task in ready()}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                task = future.result()
                done.add(task.path)
                yield task
            running |= {pool.submit(carry_out, task) for task in ready()}
