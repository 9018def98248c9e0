"""Exponential moving average of the weights, evaluated instead of the last ones when asked for."""

from __future__ import annotations

import copy

import torch
from torch import nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """Averaged copy of a model: ``average <- decay * average + (1 - decay) * weights`` after each step.

    Running statistics and counters are copied, not averaged. The decay grows from 0.1 as
    ``min(decay, (1 + t) / (10 + t))`` so that the random start is forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the present weights into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for average, live in zip(self.model.parameters(), model.parameters(), strict=True):
            average.lerp_(live, 1.0 - decay)
        for copy_of, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            copy_of.copy_(buffer)
        self.updates += 1

    def state_dict(self) -> dict[str, object]:
        """Return the averaged weights and the number of updates."""
        return {"updates": self.updates, "weights": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.updates = int(state["updates"])  # type: ignore[call-overload]
        self.model.load_state_dict(state["weights"])  # type: ignore[arg-type]
