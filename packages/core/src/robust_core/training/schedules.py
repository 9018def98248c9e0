"""Learning rates as functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Rate", "step_rate"]


def step_rate(epoch: int, *, lr: float, milestones: Sequence[int]) -> float:
    """Return ``lr`` times a tenth from the first milestone, a hundredth from the second, and so on.

    Epochs count from 1; the latest milestone in the sequence that is reached counts (PART's and ANCRA's schedules).

    >>> [step_rate(e, lr=1.0, milestones=(2, 3)) for e in (1, 2, 3)]
    [1.0, 0.1, 0.01]
    """
    reached = [number for number, milestone in enumerate(milestones, 1) if epoch >= milestone]
    return lr * 10.0 ** -max(reached, default=0)


@dataclass(frozen=True)
class Rate:
    """The learning rate within one phase.

    ``kind``: ``constant``; ``step`` (:func:`step_rate`, epochs counted from ``epoch_offset`` + 1 at the phase's
    start); ``linear`` (from the first share of ``lr`` in ``ramp`` at the phase's start to the second behind its end).
    """

    kind: str
    lr: float
    milestones: tuple[int, ...] = ()
    epoch_offset: int = 0
    ramp: tuple[float, float] = (1.0, 0.0)

    def at(self, phase_step: int, phase_steps: int, steps_per_epoch: int) -> float:
        """Return the rate of step ``phase_step`` (from 0) of a phase of ``phase_steps`` steps."""
        if self.kind == "step":
            epoch = self.epoch_offset + 1 + phase_step // steps_per_epoch
            return step_rate(epoch, lr=self.lr, milestones=self.milestones)
        if self.kind == "linear":
            first, last = self.ramp
            return self.lr * (first - (first - last) * phase_step / phase_steps)
        return self.lr
