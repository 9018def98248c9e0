"""The convex problem: linear logistic regression in four groups, its losses under the exact L2 attack, and the set Q.

Shapes: S seeds (one made-up data set each), N samples, D dimensions, R columns (rules run side by side), K groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.convex.weights import Bounds
from robust_core.randomness import derived_seed

__all__ = [
    "GROUPS",
    "WATERBIRDS",
    "Problem",
    "WeightSet",
    "adversarial_term",
    "bounded_simplex",
    "group_values",
    "kl_term",
    "make_problem",
    "natural_term",
    "simplex",
]

Array = NDArray[Any]

WATERBIRDS = (3498, 184, 56, 1057)
GROUPS = len(WATERBIRDS)
# (label, place) of the groups in their order: landbird on land, on water, waterbird on land, on water
LABEL = np.array([-1.0, -1.0, 1.0, 1.0])
PLACE = np.array([-1.0, 1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Problem:
    """S data sets: ``signed`` (S, N, D) holds ``y x``, group by group; ``counts`` (K,) are the group sizes."""

    signed: Array
    counts: tuple[int, ...]
    eps: float
    radius: float

    def indicator(self) -> Array:
        """Return the (K, N) matrix that takes group means."""
        return np.repeat(np.eye(len(self.counts)) / np.array(self.counts), self.counts, axis=1)

    def spread(self, per_group: Array) -> Array:
        """Return (..., N) sample weights whose sum over group k is ``per_group[..., k]``."""
        return np.repeat(per_group / np.array(self.counts), self.counts, axis=-1)


def make_problem(
    seeds: int, *, divisor: int = 16, dimensions: int = 20, eps: float = 0.25, radius: float = 5.0
) -> Problem:
    """Return ``seeds`` data sets in Waterbirds' proportions, counts divided by ``divisor``.

    x_0 is the core (0.6 y + N(0, 1)), x_1 the place (1.5 a + 0.5 N(0, 1)), the others are noise 0.3 N(0, 1).
    """
    counts = tuple(round(count / divisor) for count in WATERBIRDS)
    label, place = np.repeat(LABEL, counts), np.repeat(PLACE, counts)
    signed = np.empty((seeds, len(label), dimensions))
    for seed in range(seeds):
        draw = np.random.default_rng(derived_seed(seed, "convex/data"))
        x = draw.standard_normal((len(label), dimensions))
        x[:, 0] += 0.6 * label
        x[:, 1] = 1.5 * place + 0.5 * x[:, 1]
        x[:, 2:] *= 0.3
        signed[seed] = label[:, None] * x
    return Problem(signed, counts, eps, radius)


def natural_term(margins: Array, shift: Array) -> tuple[Array, Array, Array]:
    """Return log(1 + exp(-m)) and its derivatives in m and in the shift eps ||w||, the latter 0."""
    # |m| is at most radius ||x||, far from where exp overflows
    odds = np.exp(-margins)
    return np.log(1 + odds), -odds / (1 + odds), np.zeros_like(margins + shift)


def adversarial_term(margins: Array, shift: Array) -> tuple[Array, Array, Array]:
    """Return log(1 + exp(-m + shift)), the largest loss within the L2 ball, and its derivatives in m and shift."""
    odds = np.exp(shift - margins)
    slope = odds / (1 + odds)
    return np.log(1 + odds), -slope, slope


def kl_term(margins: Array, shift: Array) -> tuple[Array, Array, Array]:
    """Return the largest KL(p(x) || p(x')) within the L2 ball, and its derivatives in m and shift: **not convex**.

    With A(m) = log(1 + exp(m)) it is ``A(b) - A(m) - (b - m) A'(m)``, the Bregman divergence; it is largest towards
    the decision boundary, ``b = m - sign(m) shift``, because A is more curved there.
    """
    sign = np.where(margins >= 0, 1.0, -1.0)
    moved = margins - sign * shift
    at, to = 0.5 * (1 + np.tanh(margins / 2)), 0.5 * (1 + np.tanh(moved / 2))
    value = np.log(1 + np.exp(moved)) - np.log(1 + np.exp(margins)) - (moved - margins) * at
    return value, to - at - (moved - margins) * at * (1 - at), sign * (at - to)


def group_values(problem: Problem, seed: int, w: Array, term: Any) -> tuple[Array, Array]:
    """Return the group means (K,) of a term at ``w`` (D,) and their (sub)gradients (K, D)."""
    signed = problem.signed[seed]
    norm = float(np.linalg.norm(w))
    value, in_margin, in_shift = term(signed @ w, np.float64(problem.eps * norm))
    means = problem.indicator()
    direction = w / norm if norm > 0 else np.zeros_like(w)
    slope = means @ (in_margin[:, None] * signed)
    return means @ value, slope + problem.eps * (means @ in_shift)[:, None] * direction


@dataclass(frozen=True)
class WeightSet:
    """Q: weights that sum to 1 between bounds. ``name`` is shown; ``bounds`` None means the simplex."""

    name: str
    bounds: Bounds | None

    def vertices(self, groups: int = GROUPS) -> Array:
        """Return the corners of Q, (V, K): of the bounded simplex for kappa <= 1, half of the groups up, half down.

        Raises:
            ValueError: for an odd number of groups between bounds, where the corners are others.
        """
        if self.bounds is None:
            return np.eye(groups)
        if groups % 2:
            raise ValueError("the corners are written down for an even number of groups")
        corners = np.full((len(list(combinations(range(groups), groups // 2))), groups), self.bounds.low)
        for corner, up in zip(corners, combinations(range(groups), groups // 2), strict=True):
            corner[list(up)] = self.bounds.high
        return corners

    def maximum(self, losses: Array) -> Array:
        """Return the largest ``sum q_k l_k`` over Q, exactly, for losses (..., K).

        The largest loss gets the upper bound, the next what is left of the mass, and so on: sorting suffices.
        """
        if self.bounds is None:
            largest: Array = losses.max(-1)
            return largest
        low, high = self.bounds.low, self.bounds.high
        groups = losses.shape[-1]
        free = np.clip(1 - groups * low - (high - low) * np.arange(groups), 0, high - low)
        found: Array = (np.sort(losses, axis=-1)[..., ::-1] * (low + free)).sum(-1)
        return found


def simplex() -> WeightSet:
    """Return all weights: Phi is the sum of the two worst groups' losses."""
    return WeightSet("simplex", None)


def bounded_simplex(kappa: float = 0.2, groups: int = GROUPS) -> WeightSet:
    """Return the weights between (1 - kappa)/K and (1 + kappa)/K, the published constraint."""
    return WeightSet("bounded simplex", Bounds.around_uniform(groups, kappa))
