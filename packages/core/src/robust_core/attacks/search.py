"""Runs of the engine that look at every iterate: the best one, the first success, an observer, restarts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robust_core.attacks.balls import Ball, make_ball, per_image, select_rows
from robust_core.attacks.checks import CheckedObjective
from robust_core.attacks.engine import Classifier, gradient_of, logits_of, natural_layout
from robust_core.attacks.objectives import Objective, select
from robust_core.errors import UserError

__all__ = [
    "KEEPS",
    "Observer",
    "Record",
    "Search",
    "Standing",
    "check_early_stop",
    "checked",
    "fooled",
    "remaining",
    "standing_among",
    "watcher",
]

KEEPS = ("last", "best")
Observer = Callable[[Tensor, Tensor], None]
Standing = Callable[[Tensor], Tensor]
"""From positions ``(n,)`` of images to whether each is still to be attacked, bool ``(n,)``."""


def check_early_stop(early_stop: bool | Standing) -> None:
    """Refuse what neither switches early stopping nor says which images still stand."""
    if not isinstance(early_stop, bool) and not callable(early_stop):
        raise UserError(
            f"early_stop is {early_stop!r}, expected True, False or a function from positions to bool."
        )


def checked(
    objective: Objective, highest: int, *, loss: str | Objective, early_stop: bool | Standing
) -> CheckedObjective:
    """Return the objective behind its checks.

    They ask for logits ``(N, K)`` unless none are needed: the loss is the user's own function, and no verdict
    of the network ends the attack.
    """
    any_outputs = callable(loss) and early_stop is not True
    return CheckedObjective(objective, None if any_outputs else highest)


def fooled(logits: Tensor, labels: Tensor, targeted: bool) -> Tensor:
    """Return for which images ``(N,)`` the attack has reached its aim."""
    hits = logits.argmax(dim=1) == labels
    return hits if targeted else ~hits


def watcher(observe: Observer, ball: Ball, size: int) -> Callable[[Tensor], None]:
    """Return what shows ``observe`` the iterates of a run on whole copies of a batch of ``size`` images.

    Of the start, only the images that lie in ``ball`` are shown.
    """
    started = False

    def show(iterate: Tensor) -> None:
        nonlocal started
        rows = torch.arange(size, device=iterate.device)
        for part in torch.split(iterate, size):
            shown = slice(None) if started else ball.contains(part).nonzero().squeeze(1)
            observe(part[shown], rows[shown])
        started = True

    return show


class Record:
    """The best that was found for each image: a success, else the largest objective.

    ``images`` ``(N, ...)``; ``values`` ``(N,)``: their objective, infinite for a success.
    """

    def __init__(self, natural: Tensor) -> None:
        self.images = natural.clone()
        self.values = natural.new_full((len(natural),), -torch.inf)

    def offer(self, rows: Tensor, iterate: Tensor, values: Tensor, counts: Tensor | None = None) -> None:
        """Keep those of the images at ``rows`` that are better (and ``counts``)."""
        better = values > self.values[rows]
        if counts is not None:
            better = better & counts
        self.values[rows] = torch.where(better, values.to(self.values), self.values[rows])
        wide = better.view(-1, *[1] * (iterate.dim() - 1))
        self.images[rows] = torch.where(wide, iterate, self.images[rows])

    def unbroken(self) -> Tensor:
        """Return the positions of the images without a success."""
        return (self.values < torch.inf).nonzero().squeeze(1)


def remaining(early_stop: bool | Standing, record: Record, rows: Tensor) -> Tensor:
    """Return the places in ``rows`` ``(n,)`` of the images that are still to be attacked.

    Those without a success in ``record``, or those of which the given function says that they stand.
    """
    if not callable(early_stop):
        done = (record.values[rows] == torch.inf) & early_stop
        return (~done).nonzero().squeeze(1)
    return standing_among(early_stop, rows)


def standing_among(standing: Standing, rows: Tensor) -> Tensor:
    """Return the places in ``rows`` ``(n,)`` of the images that stand."""
    stands: Any = standing(rows)
    if not isinstance(stands, Tensor) or stands.dtype != torch.bool or stands.shape != rows.shape:
        found = (
            f"{stands.dtype} {tuple(stands.shape)}" if isinstance(stands, Tensor) else type(stands).__name__
        )
        raise UserError(
            f"early_stop returned {found}, expected bool ({len(rows)},): "
            "give a function from positions (n,) to whether each image still stands."
        )
    return stands.to(rows.device).nonzero().squeeze(1)


@dataclass(frozen=True)
class _Part:
    """The images still under attack: their positions in the batch and all that goes with them."""

    rows: Tensor
    labels: Tensor
    ball: Ball
    step_size: float | Tensor
    objective: Objective
    dim: int

    def select(self, kept: Tensor) -> _Part:
        return _Part(
            self.rows[kept],
            self.labels[kept],
            self.ball.select(kept),
            select_rows(self.step_size, kept, self.dim),
            select(self.objective, kept),
            self.dim,
        )


class Search:
    """Runs of PGD that look at every iterate; ``record`` holds what they found."""

    def __init__(
        self,
        network: Classifier,
        images: Tensor,
        labels: Tensor,
        *,
        eps: float | Tensor,
        norm: str,
        step_size: float | Tensor,
        objective: Objective,
    ) -> None:
        self._network = network
        natural = natural_layout(network, images.detach())
        rows = torch.arange(len(natural), device=natural.device)
        ball = make_ball(natural, eps, norm)
        self._all = _Part(rows, labels, ball, per_image(step_size, natural), objective, natural.dim())
        self.record = Record(natural)

    def run(
        self,
        start: Tensor,
        steps: int,
        *,
        best: bool,
        early_stop: bool,
        targeted: bool = False,
        observe: Observer | None = None,
    ) -> None:
        """Run from ``start`` ``(N, ...)`` on the images that no earlier run has finished.

        A start outside of ball or box counts for nothing but its gradient.
        """
        part = self._all.select(self.record.unbroken()) if early_stop else self._all
        iterate = natural_layout(self._network, start)[part.rows]
        for index in range(steps + 1):
            if len(part.rows) == 0:
                return
            last = index == steps
            gradient, logits, values = self._evaluate(part, iterate, with_gradient=not last)
            counts = part.ball.contains(iterate) if index == 0 else None
            if observe is not None:
                shown = slice(None) if counts is None else counts.nonzero().squeeze(1)
                observe(iterate[shown], part.rows[shown])
            if best or last:
                self.record.offer(part.rows, iterate, values, counts if best else None)
            if early_stop:
                done = fooled(logits, part.labels, targeted)
                done = done if counts is None else done & counts
                if bool(done.any()):
                    self.record.offer(part.rows, iterate, torch.full_like(values, torch.inf), done)
                    part, iterate, gradient = part.select(~done), iterate[~done], gradient[~done]
            if not last:
                iterate = part.ball.step(iterate, gradient, part.step_size)

    def _evaluate(
        self, part: _Part, iterate: Tensor, *, with_gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        if with_gradient:
            return gradient_of(self._network, iterate, part.labels, part.objective)
        with torch.no_grad():
            logits = logits_of(self._network, iterate)
            return iterate, logits, part.objective(logits, part.labels)
