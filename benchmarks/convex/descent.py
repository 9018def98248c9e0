"""The game itself: projected gradient steps of w against multiplicative steps of the group weights q and p.

As in training, the weights move first, on the losses at the present point, and then w on the weighted loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.convex.oracles import Oracle
from benchmarks.convex.problem import Problem, WeightSet
from benchmarks.convex.weights import Bounds, WeightRule, projected

__all__ = ["RESET_EVERY", "Column", "ColumnWeights", "Iterates", "descend"]

Array = NDArray[Any]

RESET_EVERY = 150
"""Batches of a Waterbirds epoch: how often the official running means are reset (gdro_at_official_code.md, 6)."""

TINY = 1e-300
"""Least weight: one that underflowed to 0 could never rise again."""


@dataclass(frozen=True)
class Column:
    """One rule on one set of weights, with its steps; ``kl``: with the KL term in place of the adversarial loss."""

    rule: WeightRule
    within: WeightSet
    w_step: float
    weight_step: float
    kl: bool = False


class ColumnWeights:
    """:class:`~benchmarks.convex.weights.WeightRule` for all columns at once, (S, R, K), without a loop over rules."""

    def __init__(self, columns: Sequence[Column]) -> None:
        rules = [column.rule for column in columns]
        bounds = [column.within.bounds for column in columns]
        known = {item for item in bounds if item is not None}
        if len(known) > 1:
            raise ValueError("all bounded columns must share their bounds")
        self.bounds = next(iter(known), Bounds(0.0, 1.0))
        clips = [
            rule.limits == "clip" and bound is not None for rule, bound in zip(rules, bounds, strict=True)
        ]
        self.clip_low = np.where(clips, self.bounds.low, 0.0)[:, None]
        self.clip_high = np.where(clips, self.bounds.high, np.inf)[:, None]
        self.project = np.array(
            [
                rule.limits == "project" and bound is not None
                for rule, bound in zip(rules, bounds, strict=True)
            ]
        )
        self.eta = np.array([column.weight_step for column in columns])[:, None]
        self.three = np.array([float(rule.times == 3) for rule in rules])[:, None]
        self.sign = np.array([float(rule.sign) for rule in rules])[:, None]
        self.uniform = np.array([rule.p == "uniform" for rule in rules])
        self.shared = np.array([rule.p == "q" for rule in rules])

    def step(self, q: Array, p: Array, losses: tuple[Array, Array], means: Array) -> tuple[Array, Array]:
        """Return the next q and p (S, R, K) from natural and adversarial losses and running means of the former."""
        natural, adversarial = losses
        both = np.empty((2, *q.shape))
        np.multiply(q, np.exp(self.eta * self.three * (natural + means)), out=both[0])
        np.multiply(p, np.exp(self.eta * self.sign * adversarial), out=both[1])
        np.minimum(np.maximum(both, self.clip_low, out=both), self.clip_high, out=both)
        both[0] *= np.exp(self.eta * natural)
        both /= both.sum(-1, keepdims=True)
        np.maximum(both, TINY, out=both)
        if self.project.any():
            both[:, :, self.project] = projected(both[:, :, self.project], self.bounds)
        q, p = both
        p[:, self.uniform] = 1 / p.shape[-1]
        p[:, self.shared] = q[:, self.shared]
        return q, p


@dataclass(frozen=True)
class Iterates:
    """Means over the steps and the last point: ``w`` (S, R, D), ``q`` and ``p`` (S, R, K)."""

    w: Array
    last: Array
    q: Array
    p: Array


def descend(
    problem: Problem,
    columns: Sequence[Column],
    oracle: Oracle,
    horizons: Sequence[int],
) -> dict[int, Iterates]:
    """Return the iterates at each of the ``horizons`` of one run of constant steps from w = 0 and q = p = 1/K."""
    seeds, _, dimensions = problem.signed.shape
    groups, count = len(problem.counts), len(columns)
    factors = np.array([[column.rule.factor(groups)] for column in columns])
    steps = np.array([[column.w_step] for column in columns])
    weights = ColumnWeights(columns)
    w = np.zeros((seeds, count, dimensions))
    q = np.full((seeds, count, groups), 1 / groups)
    p = q.copy()
    sums = [np.zeros_like(w), np.zeros_like(q), np.zeros_like(p)]
    seen = np.zeros_like(q)
    found = {}
    for step in range(1, max(horizons) + 1):
        natural, adversarial = oracle.losses(w)
        since = (step - 1) % RESET_EVERY
        seen = natural + (seen if since else 0.0)
        q, p = weights.step(q, p, (natural, adversarial), seen / (since + 1))
        for total, item in zip(sums, (w, q, p), strict=True):
            total += item
        if step in horizons:
            found[step] = Iterates(sums[0] / step, w, sums[1] / step, sums[2] / step)
        w = w - steps * oracle.gradient(q, factors * p)
        norms = np.sqrt(np.einsum("srd,srd->sr", w, w))[..., None]
        w *= problem.radius / np.maximum(norms, problem.radius)
    return found
