"""What a step is told: group losses at the present points, then the gradient of their weighted sum.

Shapes as in ``problem.py``; points ``w`` (S, R, D), one per seed and column. ``kl`` (R,) says which columns have
the KL term in place of the adversarial loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.convex.problem import Problem, adversarial_term, kl_term, natural_term
from robust_core.randomness import derived_seed

__all__ = ["FullGradient", "OneSample", "Oracle"]

Array = NDArray[Any]

CHUNK = 1000


def _directions(w: Array) -> tuple[Array, Array]:
    """Return the norms (S, R, 1) and the unit vectors; the zero vector at 0, a subgradient of the norm there."""
    norms = np.sqrt(np.einsum("srd,srd->sr", w, w))[..., None]
    return norms, w / np.maximum(norms, 1e-30)


class Oracle(Protocol):
    """Losses first, then the gradient at the same points with weights that may depend on them."""

    def losses(self, w: Array) -> tuple[Array, Array]:
        """Return natural and adversarial group losses (S, R, K) at ``w`` (S, R, D)."""
        ...

    def gradient(self, q: Array, p: Array) -> Array:
        """Return the gradient (S, R, D) of ``sum q L + sum p R`` at these points."""
        ...


class FullGradient:
    """All samples in every step, in float32 (whose noise is far below what 10^5 steps reach); steps in float64."""

    def __init__(self, problem: Problem, kl: Sequence[bool]) -> None:
        self.problem = problem
        self.kl = np.flatnonzero(kl)
        self.signed = problem.signed.astype(np.float32)
        self.against = np.ascontiguousarray(-self.signed.transpose(0, 2, 1))
        self.spread = problem.indicator().astype(
            np.float32
        )  # (K, N), 1 / count where a sample is of the group
        self.means = np.ascontiguousarray(self.spread.T)
        seeds, samples, _ = self.signed.shape
        # arrays of this size are given back to the system when freed: kept, they cost a third of the time
        self.buffers = [np.empty((seeds, len(kl), samples), np.float32) for _ in range(4)]
        self.slopes: tuple[Array, Array, Array]
        self.directions: Array

    def losses(self, w: Array) -> tuple[Array, Array]:
        """Return the exact group means (S, R, K) at ``w``."""
        norms, self.directions = _directions(w)
        shift = (self.problem.eps * norms).astype(np.float32)
        opposed, natural, adversarial, spare = self.buffers
        np.matmul(w.astype(np.float32), self.against, out=opposed)
        np.exp(opposed, out=natural)
        np.multiply(natural, np.exp(shift), out=adversarial)
        found = []
        for odds in (natural, adversarial):
            np.add(odds, np.float32(1), out=spare)
            np.divide(odds, spare, out=odds)
            found.append(self._means(np.log(spare, out=spare)))
        in_shift = self._means(adversarial)
        if len(self.kl):
            value, in_margin, with_shift = kl_term(-opposed[:, self.kl], shift[:, self.kl])
            found[1][:, self.kl] = self._means(value)
            adversarial[:, self.kl] = -in_margin
            in_shift[:, self.kl] = self._means(with_shift)
        self.slopes = natural, adversarial, in_shift
        return found[0], found[1]

    def _means(self, values: Array) -> Array:
        means: Array = np.matmul(values, self.means).astype(np.float64)
        return means

    def gradient(self, q: Array, p: Array) -> Array:
        """Return the gradient (S, R, D) of ``sum q L + sum p R`` at the points of the last ``losses``."""
        natural, adversarial, in_shift = self.slopes  # the slopes in -m
        spare = self.buffers[3]
        natural *= np.matmul(q.astype(np.float32), self.spread, out=spare)
        adversarial *= np.matmul(p.astype(np.float32), self.spread, out=spare)
        natural += adversarial
        pull = (p * in_shift).sum(-1, keepdims=True)
        toward: Array = np.matmul(natural, self.signed)
        found: Array = self.problem.eps * pull * self.directions - toward
        return found


class OneSample:
    """One sample of each group in every step, the same for all columns; float64."""

    def __init__(self, problem: Problem, kl: Sequence[bool]) -> None:
        self.problem = problem
        self.kl = np.flatnonzero(kl)
        self.starts = np.cumsum((0, *problem.counts))[:-1]
        seeds = len(problem.signed)
        self.draws = [np.random.default_rng(derived_seed(seed, "convex/samples")) for seed in range(seeds)]
        self.rows = np.arange(seeds)[:, None]
        self.picked = np.empty((0, seeds, len(problem.counts)), dtype=np.int64)
        self.step = 0
        self.samples: Array
        self.slopes: tuple[Array, Array, Array]
        self.directions: Array

    def losses(self, w: Array) -> tuple[Array, Array]:
        """Draw one sample per group and return its losses (S, R, K): unbiased for the group means."""
        if self.step % CHUNK == 0:
            drawn = [
                draw.integers(self.problem.counts, size=(CHUNK, len(self.starts))) for draw in self.draws
            ]
            self.picked = np.stack(drawn, axis=1) + self.starts
        self.samples = self.problem.signed[self.rows, self.picked[self.step % CHUNK]]
        self.step += 1
        norms, self.directions = _directions(w)
        margins, shift = w @ self.samples.transpose(0, 2, 1), self.problem.eps * norms
        plain, plain_slope, _ = natural_term(margins, shift)
        value, in_margin, in_shift = adversarial_term(margins, shift)
        if len(self.kl):
            at = kl_term(margins[:, self.kl], shift[:, self.kl])
            for whole, part in zip((value, in_margin, in_shift), at, strict=True):
                whole[:, self.kl] = part
        self.slopes = plain_slope, in_margin, in_shift
        return plain, value

    def gradient(self, q: Array, p: Array) -> Array:
        """Return the gradient (S, R, D) of ``sum q L + sum p R`` of the drawn samples."""
        natural, in_margin, in_shift = self.slopes
        pull = (p * in_shift).sum(-1, keepdims=True)
        toward = (q * natural + p * in_margin) @ self.samples
        found: Array = toward + self.problem.eps * pull * self.directions
        return found
