"""Random search without gradients: candidates in turn, each kept where its objective is larger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_core.attacks.balls import LinfBall, make_ball
from robust_core.attacks.checks import check_call, check_labels_fit
from robust_core.attacks.engine import Classifier, logits_of, natural_layout, natural_logits, network_for
from robust_core.attacks.objectives import Objective, named, select
from robust_core.attacks.search import (
    Observer,
    Record,
    Standing,
    check_early_stop,
    checked,
    fooled,
    remaining,
)

__all__ = ["Part", "Proposal", "RandomSearch", "draws_of"]

# How many numbers are drawn (and copied to the device) at once.
_DRAWN_AT_ONCE = 2**22


@dataclass(frozen=True)
class Part:
    """The images still under attack; every tensor has a row for each of them.

    ``rows``: their positions in the batch; ``best``: the point of the run with the largest ``value``.
    """

    rows: Tensor
    labels: Tensor
    ball: LinfBall
    objective: Objective
    best: Tensor
    value: Tensor

    def select(self, kept: Tensor) -> Part:
        """Return the part of some of its images."""
        if len(kept) == len(self.rows):
            return self
        return Part(
            self.rows[kept],
            self.labels[kept],
            self.ball.select(kept),
            select(self.objective, kept),
            self.best[kept],
            self.value[kept],
        )


Proposal = Callable[[int, Part], Tensor]
"""From the query's number and the part to one candidate per image, within ball and box."""


class RandomSearch:
    """Runs of random search in the L-inf ball; ``record`` holds what they found.

    Arguments and errors are those of the attacks (:func:`robust_core.attacks.square`).
    """

    def __init__(
        self,
        model: nn.Module | Classifier,
        images: Tensor,
        labels: Tensor,
        *,
        eps: float | Tensor,
        loss: str | Objective,
        early_stop: bool | Standing,
        observe: Observer | None,
    ) -> None:
        highest = check_call(images, labels, eps=eps)
        check_early_stop(early_stop)
        network = network_for(model, images)

        def reference() -> Tensor:
            logits = natural_logits(network, images)
            check_labels_fit(highest, logits, len(labels))
            return logits

        plain = named(loss, targeted=False, reference=reference)
        natural = natural_layout(network, images.detach())
        ball = make_ball(natural, eps)
        assert isinstance(ball, LinfBall)
        self._network = network
        self._early_stop = early_stop
        self._observe = observe
        self._all = Part(
            rows=torch.arange(len(natural), device=natural.device),
            labels=labels,
            ball=ball,
            objective=checked(plain, highest, loss=loss, early_stop=early_stop),
            best=natural,
            value=natural.new_full((len(natural),), -torch.inf),
        )
        self.record = Record(natural)

    def run(self, propose: Proposal, queries: int) -> None:
        """Ask for ``queries`` candidates for each image that is still to be attacked; one pass each."""
        part = self._left(self._all)
        for index in range(queries):
            if len(part.rows) == 0:
                return
            part = self._left(self._judge(part, propose(index, part)))

    def _judge(self, part: Part, candidate: Tensor) -> Part:
        """Return the part after one query; what is better goes into the record and to the observer."""
        with torch.no_grad():
            logits = logits_of(self._network, candidate)
            value = part.objective(logits, part.labels).to(part.value)
        if self._early_stop is True:
            value = value.masked_fill(fooled(logits, part.labels, False), torch.inf)
        better = value > part.value
        self.record.offer(part.rows, candidate, value)
        if self._observe is not None:
            shown = better.nonzero().squeeze(1)
            if len(shown) > 0:
                self._observe(candidate[shown], part.rows[shown])
        wide = better.view(-1, *[1] * (candidate.dim() - 1))
        best = torch.where(wide, candidate, part.best)
        value = torch.where(better, value, part.value)
        return Part(part.rows, part.labels, part.ball, part.objective, best, value)

    def _left(self, part: Part) -> Part:
        return part.select(remaining(self._early_stop, self.record, part.rows)) if self._early_stop else part


def draws_of(
    source: torch.Generator, count: int, shape: tuple[int, ...], device: torch.device
) -> Iterator[Tensor]:
    """Yield ``count`` tensors of ``shape``, uniform in [0, 1), on ``device``; many are drawn at once.

    To be drawn for the whole batch, so that what an image gets does not depend on which others have left.
    """
    size = max(1, _DRAWN_AT_ONCE // torch.Size(shape).numel())
    for first in range(0, count, size):
        block = (min(size, count - first), *shape)
        yield from torch.rand(block, generator=source, device=source.device).to(device)
