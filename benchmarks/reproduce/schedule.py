"""The order of a reproduction's work: stages in turn, donors first, later plans where earlier ones leave room."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reproduce.tasks import Piece, carry_out
from robust_core.workers import begin_worker

__all__ = ["Course", "Stage", "carry_out_all", "next_piece", "share_out"]


@dataclass(frozen=True)
class Stage:
    """Work of which each piece waits for its donor alone, and what becomes of a piece that is done."""

    work: Sequence[Piece]
    keep: Callable[[Path], None]


class Course:
    """How far a plan is, which comes to its first stage at once: its stages come one after the other."""

    def __init__(self, stages: Iterator[Stage]) -> None:
        self._stages = stages
        self._keep: Callable[[Path], None]
        self._waiting: list[Piece] = []
        self._unfinished: set[Path] = set()
        self._advance()

    def _advance(self) -> None:
        """Come to the next stage with work, or to the end."""
        for stage in self._stages:
            self._keep, self._waiting = stage.keep, list(stage.work)
            self._unfinished = {piece.path for piece in stage.work}
            if self._unfinished:
                return

    def next(self) -> Piece | None:
        """Return the first waiting piece whose donor is finished, none twice; None if there is no such piece."""
        for place, piece in enumerate(self._waiting):
            if piece.donor not in self._unfinished:
                return self._waiting.pop(place)
        return None

    def take(self, piece: Piece) -> None:
        """Note that a piece is done and keep it; after the last one of a stage comes the next stage."""
        self._unfinished.remove(piece.path)
        self._keep(piece.path)
        if not self._unfinished:
            self._advance()


def next_piece(courses: Sequence[Course]) -> tuple[Course, Piece] | None:
    """Return what can begin now, of the first course that has such a piece; None if there is no such course."""
    for course in courses:
        if piece := course.next():
            return course, piece
    return None


def share_out(courses: Sequence[Course], begin: Callable[[Piece], Future[Piece]], jobs: int) -> None:
    """Have ``jobs`` pieces on their way at once, each begun by ``begin``, until all courses are at their end.

    After a failure nothing begins any more; what is on its way is waited for and kept, then the failure is raised.
    """
    running: dict[Future[Piece], Course] = {}
    failure: BaseException | None = None
    while True:
        while failure is None and len(running) < jobs and (found := next_piece(courses)):
            course, piece = found
            running[begin(piece)] = course
        if not running:
            break
        wait(running, return_when=FIRST_COMPLETED)
        for future in [future for future in running if future.done()]:
            course = running.pop(future)
            if error := future.exception():
                failure = failure or error
            else:
                course.take(future.result())
    if failure is not None:
        raise failure


def carry_out_all(plans: Sequence[Iterator[Stage]], jobs: int) -> None:
    """Carry out the stages of all plans in ``jobs`` processes.

    Earlier plans come first; a later one begins where an earlier one would leave a process idle.
    """
    courses = [Course(stages) for stages in plans]
    if jobs == 1:
        while found := next_piece(courses):
            course, piece = found
            course.take(carry_out(piece))
        return
    # spawned: a forked process would inherit torch's threads in an unknown state
    with ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=begin_worker
    ) as pool:
        share_out(courses, lambda piece: pool.submit(carry_out, piece), jobs)
