"""The rules of GDRO-AT's group weights, corrected and official, for numpy arrays ``(..., K)``.

They mirror ``gdro_at.weights``. Every rule is one pattern: multiply, clip, multiply once more, bring back to sum 1;
:class:`WeightRule` says which parts of it a rule uses; ``benchmarks.convex.descent.ColumnWeights`` takes the steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CORRECTED", "RULES", "Bounds", "WeightRule", "projected"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Bounds:
    """The least and the largest weight of a group; the simplex is ``Bounds(0, 1)``."""

    low: float
    high: float

    @classmethod
    def around_uniform(cls, groups: int, kappa: float) -> Bounds:
        """Return ``(1 - kappa)/K`` and ``(1 + kappa)/K``."""
        return cls((1 - kappa) / groups, (1 + kappa) / groups)


def projected(weights: Array, bounds: Bounds) -> Array:
    """Return the Kullback-Leibler projection of positive weights on ``{sum 1, low <= q_k <= high}``.

    That is ``clip(s q_k, low, high)`` for the one scale ``s`` that gives sum 1 (fair_baselines.md, section 2). The
    sum is linear in s between the scales at which a weight meets a bound, so s is found there without iterating.
    """
    # (K, B): sums over K are then quick
    flat = np.ascontiguousarray(weights.reshape(-1, weights.shape[-1]).T)
    corners = np.concatenate([bounds.low / flat, bounds.high / flat])
    sums = np.clip(corners[:, None] * flat, bounds.low, bounds.high).sum(1)
    below, above = sums <= 1, sums >= 1
    s_low, f_low = np.where(below, corners, -np.inf).max(0), np.where(below, sums, -np.inf).max(0)
    s_high, f_high = np.where(above, corners, np.inf).min(0), np.where(above, sums, np.inf).min(0)
    rise = np.where(f_high > f_low, f_high - f_low, 1.0)
    scale = s_low + (1 - f_low) * (s_high - s_low) / rise
    found: Array = np.clip(scale * flat, bounds.low, bounds.high).T.reshape(weights.shape)
    return found


@dataclass(frozen=True)
class WeightRule:
    """One rule for q (natural) and p (adversarial); the defaults are the corrected rule.

    ``times``: 1, or 3 for exponents ``eta (2 L + mean L)``; ``sign`` of p's exponent; ``limits``: ``project``, or
    ``clip`` (before the last factor of q, before the division of p), or ``none``; ``scale``: c, the factor of the
    adversarial part ("K": the number of groups); ``p``: ``own``, ``uniform`` (always 1/K) or ``q`` (q's values).
    """

    name: str
    times: int = 1
    sign: int = 1
    limits: str = "project"
    scale: str = "1"
    p: str = "own"

    def factor(self, groups: int) -> float:
        """Return c."""
        return float(groups) if self.scale == "K" else float(self.scale)


CORRECTED = WeightRule("corrected")
RULES: tuple[WeightRule, ...] = (
    CORRECTED,
    WeightRule("official", times=3, sign=-1, limits="clip", scale="4"),
    WeightRule("official, plus sign", times=3, limits="clip", scale="4"),
    WeightRule("minus sign", sign=-1),
    WeightRule("three multiplications", times=3),
    WeightRule("clip before the last multiplication", limits="clip"),
    WeightRule("c = K", scale="K"),
    WeightRule("p = 1/K", p="uniform"),
    WeightRule("q = p", p="q"),
    WeightRule("no bound", limits="none"),
)
"""Corrected, official (and official but for its sign), the corrected rule with one change (fair_baselines.md, 2)."""
