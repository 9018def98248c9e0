"""How far iterates are from a solution: duality gap, excess of Phi, stationarity; slopes over the horizons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from benchmarks.convex.problem import Problem, WeightSet, adversarial_term, group_values, natural_term
from benchmarks.convex.reference import inner_minimum
from benchmarks.convex.weights import projected

__all__ = ["INNER_ERROR", "duality_gap", "fitted_slope", "smallest_combination", "spread", "stationarity"]

Array = NDArray[Any]

INNER_ERROR = 1e-10
"""The inner minimum of a duality gap is known to this."""


def duality_gap(
    problem: Problem, seed: int, within: WeightSet, w: Array, q: Array, p: Array, factor: float = 1.0
) -> float:
    """Return ``max over q', p' in Q of F(w, q', p') - min over the ball of F(., q, p)``, >= 0, 0 at a saddle point.

    ``F = sum q L + factor sum p R``: the game that a rule with c = ``factor`` plays. The maximum is exact (sorting).
    Weights outside of Q (of rules that break its bounds) are projected on it first: they would bound nothing.

    Raises:
        ArithmeticError: if the inner minimum could not be certified to 1e-10.
    """
    natural = group_values(problem, seed, w, natural_term)[0]
    adversarial = group_values(problem, seed, w, adversarial_term)[0]
    upper = within.maximum(natural) + factor * within.maximum(adversarial)
    if within.bounds is not None:
        q, p = projected(q, within.bounds), projected(p, within.bounds)
    least = inner_minimum(problem, seed, q, factor * p, w)
    if not least.error <= INNER_ERROR:
        raise ArithmeticError(f"inner minimum of seed {seed} known to {least.error:.1e} only")
    return float(upper) - (least.value - max(least.error, 0.0))


def smallest_combination(points: Array, rays: Array) -> float:
    """Return the smallest norm of (convex combination of the rows of ``points``) + (cone of the rows of ``rays``).

    Non-negative least squares with one more equation, sum of the weights = 1: for a homogeneous problem the
    direction of its solution is exact, whatever the weight of that equation.
    """
    matrix = np.concatenate([points, rays]).T
    sums = np.concatenate([np.ones(len(points)), np.zeros(len(rays))])
    size = max(float(np.abs(points).max()), 1e-30)
    weights, _ = nnls(np.vstack([matrix / size, sums]), np.append(np.zeros(len(matrix)), 1.0))
    return float(np.linalg.norm(matrix @ weights) / (weights @ sums))


def stationarity(
    problem: Problem, seed: int, within: WeightSet, w: Array, tolerance: float, term: Any = adversarial_term
) -> float:
    """Return the smallest norm among the subgradients of Phi (plus the ball's normal cone) at ``w``.

    A corner of Q is active if its weighted loss is within ``tolerance`` of the largest; likewise the ball counts as
    met within ``tolerance``. Averaged iterates have no exact ties: without a tolerance one corner alone would count.
    """
    corners = within.vertices(len(problem.counts))
    active = []
    for kind in (natural_term, term):
        losses, gradients = group_values(problem, seed, w, kind)
        reached = corners @ losses
        active.append((corners @ gradients)[reached >= reached.max() - tolerance])
    sums = (active[0][:, None] + active[1][None]).reshape(-1, w.shape[0])
    norm = float(np.linalg.norm(w))
    rays = (w / norm)[None] if norm >= problem.radius - tolerance else np.empty((0, w.shape[0]))
    return smallest_combination(sums, rays)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, 5% and 95% quantile over seeds."""
    low, middle, high = np.quantile(np.asarray(values, dtype=float), (0.05, 0.5, 0.95))
    return {"median": float(middle), "low": float(low), "high": float(high)}


def fitted_slope(values: Mapping[int, Sequence[float]]) -> dict[str, float]:
    """Return the slope of log value against log T over the last decade of horizons, per seed: median, 5%, 95%.

    Raises:
        ValueError: if the last decade holds fewer than two horizons.
    """
    last = max(values)
    horizons = [horizon for horizon in sorted(values) if horizon * 10 >= last]
    if len(horizons) < 2:
        raise ValueError("a slope needs two horizons in the last decade")
    # what is measured is known to about 1e-10: below that there is nothing to fit
    logs = np.log10(np.maximum(np.array([values[horizon] for horizon in horizons]), INNER_ERROR))
    slopes = np.polyfit(np.log10(horizons), logs, 1)[0]
    return spread([float(slope) for slope in slopes])
