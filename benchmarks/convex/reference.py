"""Minima that are certified: of a weighted loss over the ball (Newton), and of Phi (barrier method, primal and dual).

Lower bounds come from convexity alone: for convex f, ``f(v) >= f(w) + g.(v - w)``, hence over the ball
``min f >= f(w) - (g.w + D ||g||)``. Nothing is taken on trust from a solver's own stopping rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.convex.problem import Problem, WeightSet, adversarial_term, group_values, natural_term

__all__ = ["Minimum", "Optimum", "inner_minimum", "optimum", "value_of"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Minimum:
    """A point of the ball, its value, and how far at most the value lies above the minimum."""

    w: Array
    value: float
    error: float


class _Weighted:
    """``f(w) = sum q L + sum p R`` of one data set; q and p (K,)."""

    def __init__(self, problem: Problem, seed: int, q: Array, p: Array) -> None:
        self.signed, self.eps = problem.signed[seed], problem.eps
        self.natural, self.adversarial = problem.spread(q), problem.spread(p)

    def value(self, w: Array) -> float:
        margins, shift = self.signed @ w, np.float64(self.eps * np.linalg.norm(w))
        plain, attacked = natural_term(margins, shift)[0], adversarial_term(margins, shift)[0]
        return float(self.natural @ plain + self.adversarial @ attacked)

    def derivatives(self, w: Array) -> tuple[Array, Array]:
        norm = max(float(np.linalg.norm(w)), 1e-12)
        unit = w / norm
        margins, shift = self.signed @ w, np.float64(self.eps * norm)
        a, b = -natural_term(margins, shift)[1], adversarial_term(margins, shift)[2]
        pull = float(self.adversarial @ b)
        gradient = self.eps * pull * unit - (self.natural * a + self.adversarial * b) @ self.signed
        moved = self.eps * unit - self.signed
        curved = self.natural * a * (1 - a), self.adversarial * b * (1 - b)
        hessian = (self.signed.T * curved[0]) @ self.signed + (moved.T * curved[1]) @ moved
        return gradient, hessian + self.eps * pull / norm * (np.eye(len(w)) - np.outer(unit, unit))


def _newton(f: _Weighted, w: Array, penalty: float) -> tuple[Array, Array]:
    """Return the minimum of ``f + penalty/2 ||w||^2`` near rounding, and the Hessian there."""
    for _ in range(60):
        gradient, hessian = f.derivatives(w)
        gradient = gradient + penalty * w
        hessian = hessian + penalty * np.eye(len(w))
        step = np.linalg.solve(hessian, gradient)
        fall = float(gradient @ step)
        if fall < 1e-26 or float(np.linalg.norm(gradient)) < 1e-14:
            break
        size = 1.0
        if fall > 1e-12:  # nearer than that, rounding hides the fall of the value, and full steps converge
            start = f.value(w) + penalty / 2 * float(w @ w)
            while size > 1e-8:
                new = w - size * step
                if f.value(new) + penalty / 2 * float(new @ new) <= start - 1e-4 * size * fall:
                    break
                size /= 2
        w = w - size * step
    return w, hessian


def inner_minimum(problem: Problem, seed: int, q: Array, p: Array, start: Array) -> Minimum:
    """Return the minimum of ``sum q L + sum p R`` over the ball, with its certificate.

    Newton's method; where the minimum lies outside of the ball, a multiplier of ``||w||^2/2`` is found by the
    secular equation ``1/||w|| = 1/D``.
    """
    f = _Weighted(problem, seed, q, p)
    w = start if float(np.linalg.norm(start)) > 1e-6 else problem.signed[seed].mean(0)
    multiplier, radius = 0.0, problem.radius
    for _ in range(60):
        w, hessian = _newton(f, w, multiplier)
        norm = float(np.linalg.norm(w))
        if (multiplier == 0.0 and norm <= radius) or abs(norm - radius) < 1e-13 * radius:
            break
        rise = (norm / radius - 1) * norm**2 / float(w @ np.linalg.solve(hessian, w))
        multiplier = max(0.0, multiplier + rise)
    norm = float(np.linalg.norm(w))
    w = w * min(1.0, radius / norm)
    gradient, _ = f.derivatives(w)
    return Minimum(w, f.value(w), float(gradient @ w) + radius * float(np.linalg.norm(gradient)))


def value_of(problem: Problem, seed: int, within: WeightSet, w: Array) -> float:
    """Return Phi(w), exactly."""
    natural = group_values(problem, seed, w, natural_term)[0]
    adversarial = group_values(problem, seed, w, adversarial_term)[0]
    return float(within.maximum(natural) + within.maximum(adversarial))


@dataclass(frozen=True)
class Optimum:
    """A minimum of Phi with the weights that prove it: ``bound <= Phi* <= value``."""

    w: Array
    q: Array
    p: Array
    value: float
    bound: float


def optimum(problem: Problem, seed: int, within: WeightSet) -> Optimum:
    """Return the minimum of Phi over the ball, to within ``value - bound`` (about 1e-9).

    Phi is the least s + t with ``s >= v.L(w)`` and ``t >= v.R(w)`` for all corners v of Q; a log barrier on these and
    on the ball is followed by Newton's method. Its multipliers are weights of corners, hence a q and a p of Q; the
    inner minimum at them bounds Phi* from below, whatever the barrier method did.
    """
    corners = within.vertices(len(problem.counts))
    w = problem.signed[seed].mean(0)
    w = w * 0.2 / float(np.linalg.norm(w))
    natural, adversarial = (group_values(problem, seed, w, t)[0] for t in (natural_term, adversarial_term))
    z = np.concatenate([w, [within.maximum(natural) + 1, within.maximum(adversarial) + 1]])
    sharpness = 1.0
    while sharpness < 1e10:
        sharpness *= 8
        z, weights = _centre(problem, seed, corners, z, sharpness)
    w, (q, p) = z[:-2], weights
    least = inner_minimum(problem, seed, q, p, w)
    return Optimum(w, q, p, value_of(problem, seed, within, w), least.value - least.error)


def _slacks(problem: Problem, seed: int, corners: Array, z: Array) -> tuple[Array, Array, float]:
    """Return what is left of ``s - v.L``, ``t - v.R`` (V,) and ``D^2 - ||w||^2``; all positive inside."""
    w = z[:-2]
    natural, adversarial = (group_values(problem, seed, w, t)[0] for t in (natural_term, adversarial_term))
    return z[-2] - corners @ natural, z[-1] - corners @ adversarial, problem.radius**2 - float(w @ w)


def _barrier(problem: Problem, seed: int, corners: Array, z: Array, sharpness: float) -> float:
    s, t, ball = _slacks(problem, seed, corners, z)
    if min(s.min(), t.min(), ball) <= 0:
        return np.inf
    return float(sharpness * (z[-2] + z[-1]) - np.log(s).sum() - np.log(t).sum() - np.log(ball))


def _centre(
    problem: Problem, seed: int, corners: Array, z: Array, sharpness: float
) -> tuple[Array, tuple[Array, Array]]:
    """Return the minimum of the barrier function, and the weights q and p that its multipliers give."""
    weights: tuple[Array, Array]
    for _ in range(50):
        gradient, hessian, weights = _barrier_derivatives(problem, seed, corners, z, sharpness)
        scale = 1 / np.sqrt(np.diag(hessian))  # the slacks differ by ten orders of magnitude
        step = scale * np.linalg.solve(hessian * scale[:, None] * scale, scale * gradient)
        fall = float(gradient @ step)
        if fall < 1e-9:
            break
        start, size = _barrier(problem, seed, corners, z, sharpness), 1.0
        while size > 1e-10:
            if _barrier(problem, seed, corners, z - size * step, sharpness) <= start - 1e-4 * size * fall:
                break
            size /= 2
        else:
            break  # rounding: nothing more to gain
        z = z - size * step
    return z, weights


def _barrier_derivatives(
    problem: Problem, seed: int, corners: Array, z: Array, sharpness: float
) -> tuple[Array, Array, tuple[Array, Array]]:
    w, size = z[:-2], len(z)
    s, t, ball = _slacks(problem, seed, corners, z)
    gradient, hessian = np.zeros(size), np.zeros((size, size))
    gradient[-2:] = sharpness
    weights = []
    for slack, term, place in ((s, natural_term, size - 2), (t, adversarial_term, size - 1)):
        rows = np.zeros((len(corners), size))
        rows[:, :-2] = -corners @ group_values(problem, seed, w, term)[1]
        rows[:, place] = 1
        force = 1 / slack
        gradient -= force @ rows
        hessian += (rows.T * force**2) @ rows
        weights.append(force @ corners)
    # the curvature of the losses themselves, under the weights (not normalised) that the barrier puts on them
    hessian[:-2, :-2] += _Weighted(problem, seed, *weights).derivatives(w)[1]
    gradient[:-2] += 2 * w / ball
    hessian[:-2, :-2] += 2 / ball * np.eye(size - 2) + 4 / ball**2 * np.outer(w, w)
    q, p = (item / item.sum() for item in weights)
    return gradient, hessian, (q, p)
