"""Learning rates as functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Rate", "step_rate"]


def step_rate(epoch: int, *, lr: float, first: int, second: int) -> float:
    """Return ``lr`` before epoch ``first``, a tenth from there, a hundredth from epoch ``second`` (PART's schedule).

    Epochs count from 1.

    >>> [step_rate(e, lr=1.0, first=2, second=3) for e in (1, 2, 3)]
    [1.0, 0.1, 0.01]
    """
    if epoch >= second:
        return lr * 0.01
    if epoch >= first:
        return lr * 0.1
    return lr


@dataclass(frozen=True)
class Rate:
    """The learning rate within one phase.

    ``kind``: ``constant``; ``step`` (milestones ``first`` and ``second`` in epochs, counted from
    ``epoch_offset`` + 1 at the phase's start); ``linear`` (falls to 0 over the phase).
    """

    kind: str
    lr: float
    first: int = 0
    second: int = 0
    epoch_offset: int = 0

    def at(self, phase_step: int, phase_steps: int, steps_per_epoch: int) -> float:
        """Return the rate of step ``phase_step`` (from 0) of a phase of ``phase_steps`` steps."""
        if self.kind == "step":
            epoch = self.epoch_offset + 1 + phase_step // steps_per_epoch
            return step_rate(epoch, lr=self.lr, first=self.first, second=self.second)
        if self.kind == "linear":
            return self.lr * (1.0 - phase_step / phase_steps)
        return self.lr
