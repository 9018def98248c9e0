"""The order of a reproduction's work: donors first, stages in turn, later papers where earlier ones leave room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from benchmarks.reproduce.schedule import Course, Stage, carry_out_all, next_piece, share_out
from benchmarks.reproduce.tasks import Piece, Task


def piece(name: str, donor: str = "") -> Task:
    return Task("part", name, None, Path(name), donor=Path(donor) if donor else None)


def stage(log: list[str], *work: Task) -> Stage:
    return Stage(work, lambda path: log.append(f"kept {path}"))


def two_papers(log: list[str]) -> list[Iterator[Stage]]:
    def first() -> Iterator[Stage]:
        yield stage(log, piece("beginning"), piece("a", "beginning"), piece("b", "beginning"))
        log.append("table 1")

    def second() -> Iterator[Stage]:
        yield stage(log, piece("c"))
        log.append("trained")
        yield stage(log, piece("examined c"))
        log.append("table 2")

    return [first(), second()]


def at_once(log: list[str], wrong: str = "") -> Callable[[Piece], Future[Piece]]:
    """Return a way to begin a piece that is done, or has failed, when it has begun."""

    def begin(piece: Piece) -> Future[Piece]:
        log.append(piece.title)
        future: Future[Piece] = Future()
        if piece.title == wrong:
            future.set_exception(OSError(wrong))
        else:
            future.set_result(piece)
        return future

    return begin


def test_one_process_finishes_a_paper_before_the_next():
    log: list[str] = []
    share_out([Course(stages) for stages in two_papers(log)], at_once(log), 1)
    assert log == [
        "beginning", "kept beginning", "a", "kept a", "b", "kept b", "table 1",
        "c", "kept c", "trained", "examined c", "kept examined c", "table 2",
    ]  # fmt: skip


def test_a_later_paper_fills_the_process_that_waits_for_a_beginning():
    courses = [Course(stages) for stages in two_papers([])]

    def begun() -> str:
        found = next_piece(courses)
        return found[1].title if found else ""

    assert [begun() for _ in range(3)] == ["beginning", "c", ""]
    courses[1].take(piece("c"))
    courses[0].take(piece("beginning"))
    assert [begun() for _ in range(4)] == ["a", "b", "examined c", ""]


def test_nothing_to_do_comes_to_its_table():
    log: list[str] = []

    def plan() -> Iterator[Stage]:
        yield stage(log)
        log.append("table")

    carry_out_all([plan()], 1)
    assert log == ["table"]


def test_every_paper_is_checked_before_any_work_begins():
    log: list[str] = []

    def refused() -> Iterator[Stage]:
        raise ValueError("no such row")
        yield

    with pytest.raises(ValueError, match="no such row"):
        carry_out_all([*two_papers(log), refused()], 1)
    assert log == []


def test_what_finishes_beside_a_failure_is_kept():
    log: list[str] = []
    with pytest.raises(OSError, match="beginning"):
        share_out([Course(stages) for stages in two_papers(log)], at_once(log, wrong="beginning"), 2)
    assert log == ["beginning", "c", "kept c", "trained"]
