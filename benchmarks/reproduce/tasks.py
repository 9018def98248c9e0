"""One training of a reproduction, described so that another process can do it."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.reproduce.papers import PAPERS
from robust_core.session import Beginning, execute, resume
from robust_core.training import RunDirectory

__all__ = ["Task", "carry_out", "carry_out_all"]


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


def carry_out(task: Task) -> Task:
    """Begin a run, continue it, or take it as it is if it is finished with the same settings."""

    def say(text: str) -> None:
        print(f"[{task.title}, seed {task.config.seed}] {text}", flush=True)

    plan: Any = PAPERS[task.paper].plan
    if task.phases:
        plan = Beginning(plan, task.phases)
    if not task.force and (task.path / "config.json").exists():
        present = RunDirectory.open(task.path).record["config"]
        # a beginning is named by all that decides it, whichever row it was begun for
        if task.phases or present == json.loads(json.dumps(task.config.to_dict())):
            resume(task.config, plan, task.path, say=say)
            return task
    execute(task.config, plan, task.path, overwrite=True, fork_from=task.donor, say=say)
    return task


def carry_out_all(tasks: Sequence[Task], jobs: int) -> Iterator[Task]:
    """Carry out tasks in ``jobs`` processes, each after its donor if that is among them; yields each when done."""
    waiting, done = list(tasks), set[Path]()
    paths = {task.path for task in tasks}

    def ready() -> list[Task]:
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
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(carry_out, task) for task in ready()}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                task = future.result()
                done.add(task.path)
                yield task
            running |= {pool.submit(carry_out, task) for task in ready()}
