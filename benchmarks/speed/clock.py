"""Paired timing: the sides of a comparison take turns, so that other work on the machine hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

__all__ = ["Ratio", "Run", "alternate", "plan_rounds", "ratio_of", "seconds_of"]

Run = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """How many times faster ours is: median, smallest and largest of the ratios of each round."""

    median: float
    low: float
    high: float


def seconds_of(run: Run, device: torch.device) -> float:
    """Return the wall time of one run; a GPU is waited for before either reading of the clock."""
    _wait(device)
    begin = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def plan_rounds(round_seconds: float, budget_seconds: float, *, least: int = 3) -> int:
    """Return how many rounds fit into the budget, from ``least`` to 15.

    Where ``least`` would take far longer than the budget, as in a slow spell of a shared machine, two are enough.

    >>> plan_rounds(1.0, 9.0), plan_rounds(5.0, 9.0), plan_rounds(5.2, 9.0)
    (9, 3, 2)
    """
    # three rounds up to 1.7 times the budget keep all of `nox -s bench` below twenty minutes, which is its limit
    if least * round_seconds > 1.7 * budget_seconds:
        least = min(least, 2)
    return max(least, min(15, int(budget_seconds / max(round_seconds, 1e-9))))


def alternate(sides: Mapping[str, Run], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds of each side in each round; in a round every side runs once, in the given order."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            times[name].append(seconds_of(run, device))
    return times


def ratio_of(slower: Sequence[float], faster: Sequence[float]) -> Ratio:
    """Return the ratios of times, paired by round.

    >>> ratio_of([2.0, 9.0, 4.0], [1.0, 3.0, 1.0])
    Ratio(median=3.0, low=2.0, high=4.0)
    """
    ratios = [a / b for a, b in zip(slower, faster, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))
