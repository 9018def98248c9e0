"""Auto-PGD (Croce and Hein 2020): PGD with momentum that sets its own step size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from robust_core.attacks.balls import Ball, make_ball, per_image
from robust_core.attacks.checks import check_call, check_count, check_labels_fit, check_no_nan
from robust_core.attacks.engine import (
    Classifier,
    gradient_of,
    in_layout_of,
    natural_layout,
    natural_logits,
    network_for,
)
from robust_core.attacks.mma import wrong_classes
from robust_core.attacks.objectives import LOSSES, Objective, dlr_towards, named, select
from robust_core.attacks.search import (
    Observer,
    Record,
    Standing,
    check_early_stop,
    checked,
    fooled,
    remaining,
)
from robust_core.attacks.starts import start_source
from robust_core.errors import unknown_name

__all__ = ["APGD_LOSSES", "apgd", "checkpoints"]

APGD_LOSSES = (*LOSSES, "dlr-targeted")
MOMENTUM = 0.75
RISES = 0.75


def apgd(
    model: nn.Module | Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    steps: int = 100,
    norm: str = "linf",
    random_start: str | bool = "uniform",
    start: Tensor | None = None,
    restarts: int = 1,
    loss: str | Objective = "ce",
    targets: int = 9,
    early_stop: bool | Standing = True,
    observe: Observer | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return for each image an iterate that fools the model, else the one with the largest objective.

    The first step is ``2 eps``; at checkpoints it is halved, and the search goes back to its best point, for
    images whose objective rose in too few steps or whose best value stayed. A run takes ``steps + 1`` passes.

    Args:
        loss: as for PGD, or ``dlr-targeted``: a run towards each of the ``targets`` wrong classes with the
            largest natural logits (at most K - 1 of them).
        early_stop: images that fool the model are done; without it, all run to the end and the largest
            objective decides. Or a function from positions ``(n,)`` to bool: an image is attacked as long as
            it stands there (asked before each run, after its start and at each review), and the largest
            objective decides.

    With a function as ``loss``, and ``early_stop`` False or a function, the model may return any tensor
    ``(N, ...)`` instead of logits: several logits ``(N, M, K)``, features ``(N, D)``.

    Other arguments and errors as in :func:`robust_core.attacks.pgd`.
    """
    highest = check_call(images, labels, eps=eps, steps=steps, norm=norm)
    check_count("restarts", restarts, 1)
    check_count("targets", targets, 1)
    check_early_stop(early_stop)
    if not callable(loss) and loss not in APGD_LOSSES:
        raise unknown_name("loss", str(loss), APGD_LOSSES)
    network = network_for(model, images)
    begin = start_source(images, eps, random_start=random_start, start=start, norm=norm, generator=generator)
    natural = natural_layout(network, images.detach())
    ball = make_ball(natural, eps, norm)
    reach = natural.new_zeros(len(natural), *[1] * (natural.dim() - 1)) + per_image(eps, natural)
    record = Record(natural)
    everyone = torch.arange(len(labels), device=labels.device)
    for plain in _objectives(network, images, labels, loss, targets, highest):
        objective = checked(plain, highest, loss=loss, early_stop=early_stop)
        for _ in range(restarts):
            point = ball.project(natural_layout(network, begin()))
            state = _begin(everyone, labels, ball, objective, 2.0 * reach, point)
            if early_stop:
                state = state.select(remaining(early_stop, record, everyone))
            if len(state.rows) > 0:
                _climb(network, state, steps, record, early_stop=early_stop, observe=observe)
    return in_layout_of(record.images, images)


def checkpoints(steps: int) -> list[int]:
    """Return the steps after which the step size is reviewed (Croce and Hein 2020, section 3.2).

    >>> checkpoints(100)
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    before, share = 0.0, 0.22
    found = []
    while share < 1.0:
        found.append(math.ceil(round(share * steps, 6)))
        before, share = share, share + max(share - before - 0.03, 0.06)
    return sorted(set(found))


def _objectives(
    network: Classifier, images: Tensor, labels: Tensor, loss: str | Objective, targets: int, highest: int
) -> Iterator[Objective]:
    """Yield what the runs maximise, one after the other."""
    if loss == "dlr-targeted":
        logits = natural_logits(network, images)
        check_labels_fit(highest, logits, len(labels))
        check_no_nan(logits)
        for column in wrong_classes(logits, labels, min(targets, logits.shape[1] - 1)).flip(1).t():
            yield dlr_towards(column)
    else:

        def reference() -> Tensor:
            natural = natural_logits(network, images)
            check_labels_fit(highest, natural, len(labels))
            return natural

        yield named(loss, targeted=False, reference=reference)


def _where(condition: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    return torch.where(condition.view(-1, *[1] * (other.dim() - 1)), chosen, other)


@dataclass
class _State:
    """One run: every tensor has a row per image that is still attacked."""

    rows: Tensor
    labels: Tensor
    ball: Ball
    objective: Objective
    step: Tensor
    point: Tensor
    before: Tensor
    gradient: Tensor
    value: Tensor
    best: Tensor
    best_gradient: Tensor
    best_value: Tensor
    reviewed_value: Tensor
    rises: Tensor
    halved: Tensor

    def select(self, kept: Tensor) -> _State:
        """Return the run of some of its images."""
        parts: dict[str, Any] = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        for name, value in parts.items():
            parts[name] = value[kept] if isinstance(value, Tensor) else select(value, kept)
        return _State(**parts)

    def move(self, momentum: bool) -> Tensor:
        """Return the next point: a gradient step, mixed with the last movement."""
        target = self.ball.step(self.point, self.gradient, self.step)
        if not momentum:
            return target
        mixed = self.point + MOMENTUM * (target - self.point) + (1 - MOMENTUM) * (self.point - self.before)
        return self.ball.project(mixed)

    def arrive(self, point: Tensor, gradient: Tensor, value: Tensor) -> None:
        """Take over the next point, and the best one if it is."""
        better = value > self.best_value
        self.rises = self.rises + (value > self.value)
        self.before, self.point, self.gradient, self.value = self.point, point, gradient, value
        self.best = _where(better, point, self.best)
        self.best_gradient = _where(better, gradient, self.best_gradient)
        self.best_value = torch.where(better, value, self.best_value)

    def review(self, span: int) -> None:
        """``span`` steps after the last review: halve the step and go back where it was too large."""
        few_rises = self.rises < RISES * span
        same_best = ~self.halved & (self.reviewed_value >= self.best_value)
        halve = few_rises | same_best
        self.step = _where(halve, self.step / 2, self.step)
        self.point = _where(halve, self.best, self.point)
        self.gradient = _where(halve, self.best_gradient, self.gradient)
        self.value = torch.where(halve, self.best_value, self.value)
        self.halved, self.reviewed_value, self.rises = halve, self.best_value, torch.zeros_like(self.rises)


def _climb(
    network: Classifier,
    state: _State,
    steps: int,
    record: Record,
    *,
    early_stop: bool | Standing,
    observe: Observer | None,
) -> None:
    """Run ``steps`` steps; what is found goes into ``record``."""
    reviews = checkpoints(steps)
    reviewed, point = 0, state.point
    for index in range(steps + 1):
        if observe is not None:
            observe(point, state.rows)
        gradient, logits, value = gradient_of(network, point, state.labels, state.objective)
        state.arrive(point, gradient, value)
        if index == 0:
            state.rises, state.reviewed_value = torch.zeros_like(state.rises), value
        record.offer(state.rows, point, value)
        if early_stop is True:
            # An image that is done leaves at the next review: a smaller batch at every step would cost more.
            record.offer(
                state.rows, point, torch.full_like(value, torch.inf), fooled(logits, state.labels, False)
            )
        if index in reviews:
            state.review(index - reviewed)
            reviewed = index
        if early_stop and (index == 0 or index in reviews):
            state = state.select(remaining(early_stop, record, state.rows))
            if len(state.rows) == 0:
                return
        point = state.move(momentum=index > 0)


def _begin(
    rows: Tensor, labels: Tensor, ball: Ball, objective: Objective, step: Tensor, point: Tensor
) -> _State:
    """Return the state before the first evaluation."""
    lowest = point.new_full((len(rows),), -torch.inf)
    none = torch.zeros_like(rows)
    return _State(
        rows=rows,
        labels=labels,
        ball=ball,
        objective=objective,
        step=step,
        point=point,
        before=point,
        gradient=torch.zeros_like(point),
        value=lowest,
        best=point,
        best_gradient=torch.zeros_like(point),
        best_value=lowest,
        reviewed_value=lowest,
        rises=none,
        halved=none.bool(),
    )
