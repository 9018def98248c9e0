"""The order of a reproduction's work: donors first, stages in turn, later papers where earlier ones leave room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.reproduce import tasks
from benchmarks.reproduce.tasks import Stage, Task, carry_out_all


def piece(name: str, donor: str = "") -> Task:
    return Task("part", name, None, Path(name), donor=Path(donor) if donor else None)


class Waiting:
    """Stands for a future: what was submitted is done when it is waited for, the latest first."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def result(self) -> Task:
        return self.task


@pytest.fixture
def log(monkeypatch):
    told: list[str] = []

    def carry_out(task: Task) -> Task:
        told.append(task.title)
        return task

    monkeypatch.setattr(tasks, "carry_out", carry_out)
    return told


def kept_in(log: list[str]):
    return lambda path: log.append(f"kept {path}")


def two_papers(log: list[str]) -> list[Iterator[Stage]]:
    def first() -> Iterator[Stage]:
        yield Stage([piece("beginning"), piece("a", "beginning"), piece("b", "beginning")], kept_in(log))
        log.append("table 1")

    def second() -> Iterator[Stage]:
        yield Stage([piece("c")], kept_in(log))
        log.append("trained")
        yield Stage([piece("examined c")], kept_in(log))
        log.append("table 2")

    return [first(), second()]


def test_one_process_finishes_a_paper_before_the_next(log):
    carry_out_all(two_papers(log), 1)
    assert [entry for entry in log if not entry.startswith("kept")] == [
        "beginning", "a", "b", "table 1", "c", "trained", "examined c", "table 2",
    ]  # fmt: skip
    assert log.index("kept b") < log.index("table 1")


def test_a_later_paper_fills_the_process_that_waits_for_a_beginning(log, monkeypatch):
    class Pool:
        def __init__(self, jobs: int, **_: object) -> None:
            assert jobs == 2

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def submit(self, work, task: Task) -> Waiting:
            return Waiting(work(task))

    class Found:
        def __init__(self, running) -> None:
            assert len(running) <= 2
            self.done = [next(iter(running))]

    monkeypatch.setattr(tasks, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(tasks, "wait", lambda running, return_when: Found(running))
    carry_out_all(two_papers(log), 2)
    begun = [entry for entry in log if not entry.startswith(("kept", "table"))]
    assert begun == ["beginning", "c", "a", "trained", "b", "examined c"]
    assert log[-1] == "table 2"


def test_nothing_to_do_comes_to_its_table(log):
    def plan() -> Iterator[Stage]:
        yield Stage([], kept_in(log))
        log.append("table")

    carry_out_all([plan()], 1)
    assert log == ["table"]


def test_every_paper_is_checked_before_any_work_begins(log):
    def refused() -> Iterator[Stage]:
        raise ValueError("no such row")
        yield

    with pytest.raises(ValueError, match="no such row"):
        carry_out_all([*two_papers(log), refused()], 1)
    assert log == []
