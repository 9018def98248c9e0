"""Work of a reproduction, described so that another process can do it, and the order in which it is done."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.reproduce.papers import PAPERS
from robust_core.session import Beginning, execute, resume
from robust_core.training import RunDirectory
from robust_core.workers import begin_worker

__all__ = ["Inquiry", "Stage", "Task", "carry_out", "carry_out_all", "settings_of"]


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


def carry_out(task: Task | Inquiry) -> Task | Inquiry:
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


@dataclass(frozen=True)
class Stage:
    """Work of which each piece waits for its donor alone, and what becomes of a piece that is done."""

    work: Sequence[Task | Inquiry]
    keep: Callable[[Path], None]


class _Course:
    """How far a plan is: its stages come one after the other."""

    def __init__(self, stages: Iterator[Stage]) -> None:
        self._stages = stages
        self._keep: Callable[[Path], None] | None = None
        self._waiting: dict[int, Task | Inquiry] = {}
        self._unfinished: set[Path] = set()

    def ready(self) -> dict[int, Task | Inquiry]:
        """Return what can begin now, by its place in its stage; nothing is returned twice."""
        while not self._unfinished:
            stage = next(self._stages, None)
            if stage is None:
                return {}
            self._keep = stage.keep
            self._waiting = dict(enumerate(stage.work))
            self._unfinished = {task.path for task in stage.work}
        found = {place: task for place, task in self._waiting.items() if task.donor not in self._unfinished}
        for place in found:
            del self._waiting[place]
        return found

    def take(self, task: Task | Inquiry) -> None:
        """Note that a piece is done."""
        self._unfinished.remove(task.path)
        assert self._keep is not None
        self._keep(task.path)


def carry_out_all(plans: Sequence[Iterator[Stage]], jobs: int) -> None:
    """Carry out the stages of all plans in ``jobs`` processes.

    Earlier plans come first; a later one begins where an earlier one would leave a process idle.
    """
    courses = [_Course(stages) for stages in plans]
    pending: list[tuple[int, int, Task | Inquiry]] = []

    def gather() -> None:
        for number, course in enumerate(courses):
            pending.extend((number, place, task) for place, task in course.ready().items())
        pending.sort(key=lambda entry: entry[:2])

    gather()
    if jobs == 1:
        while pending:
            number, _, task = pending.pop(0)
            courses[number].take(carry_out(task))
            gather()
        return
    # spawned: a forked process would inherit torch's threads in an unknown state
    with ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=begin_worker
    ) as pool:
        running: dict[Future[Task | Inquiry], _Course] = {}
        while pending or running:
            # no more than can run: a mistake is told when these are done
            while pending and len(running) < jobs:
                number, _, task = pending.pop(0)
                running[pool.submit(carry_out, task)] = courses[number]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                running.pop(future).take(future.result())
            gather()
