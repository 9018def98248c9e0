"""``--scheduler``: a tenth of the rate whenever the validation loss has not fallen for some epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

__all__ = ["Plateau"]

FACTOR = 0.1
PATIENCE = 5
THRESHOLD = 1e-4
"""Relative progress that counts; these are the settings of torch's rule of this name, which the published code uses."""


@dataclass(frozen=True)
class Plateau:
    """What the rule remembers: the lowest loss, the epochs since, and the factor of the rate."""

    best: float = math.inf
    waited: int = 0
    factor: float = 1.0

    def after(self, loss: float) -> Plateau:
        """Return the state after one more epoch's validation loss."""
        if loss < self.best * (1.0 - THRESHOLD) or (math.isinf(self.best) and math.isfinite(loss)):
            return replace(self, best=loss, waited=0)
        if self.waited + 1 > PATIENCE:
            return replace(self, waited=0, factor=self.factor * FACTOR)
        return replace(self, waited=self.waited + 1)
