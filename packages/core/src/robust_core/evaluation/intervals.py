"""Intervals and comparisons: one proportion, the worst of several, several seeds, two methods.

Image variance (one trained network, other images) and seed variance (other trainings, the same images) are
never mixed: an interval is over the one or over the other, and says which. No interval covers the weakness
of an attack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from robust_core.errors import UserError
from robust_core.randomness import derived_seed

__all__ = [
    "MIN_IMAGES",
    "Interval",
    "PairedDifference",
    "bootstrap_minimum",
    "enough_images",
    "holm",
    "paired_difference",
    "paired_worst",
    "t_interval",
    "t_test",
    "wilson",
    "worst_group",
]

MIN_IMAGES = 200
"""Below this many images in a group nothing is claimed about it."""

Z95 = 1.959963984540054
_ENDS = (0.5 - 0.95 / 2, 0.5 + 0.95 / 2)
"""What of a distribution lies below the ends of a 95% interval."""


class Interval(NamedTuple):
    """An estimate with the ends of its 95% interval (NaN ends: no interval can be given)."""

    estimate: float
    low: float
    high: float

    def ends(self) -> list[float] | None:
        """Return ``[low, high]`` for JSON, or None without an interval."""
        return None if math.isnan(self.low) else [self.low, self.high]


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two methods on the same seeds and images, positive where the first is better.

    ``over`` says what the interval and the p-value are over: "seeds" (t interval and t test of the per-seed
    differences) or, with one seed, "images" (bootstrap interval, exact McNemar test). ``per_seed`` holds each
    seed's difference with its interval over images. ``claimable`` is False below ``MIN_IMAGES`` images.
    """

    interval: Interval
    p_value: float
    over: str
    per_seed: tuple[Interval, ...]
    images: int
    claimable: bool


def wilson(successes: int, n: int, z: float = Z95) -> Interval:
    """Return the Wilson score interval of a proportion (Wilson 1927), 95% by default.

    >>> [round(v, 4) for v in wilson(5, 10)]
    [0.5, 0.2366, 0.7634]
    """
    if n <= 0 or not 0 <= successes <= n:
        raise UserError(f"{successes} of {n} is no proportion: expected 0 <= successes <= n and n > 0.")
    share = successes / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the borders the formula gives 0 and 1 only up to rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(share, low, high)


def t_interval(values: Sequence[float]) -> Interval:
    """Return mean and t interval over seeds; one value has no interval (NaN ends)."""
    if len(values) == 0:
        raise UserError("No values to average: expected one value per seed.")
    data = np.asarray(values, dtype=np.float64)
    mean = float(data.mean())
    if len(data) == 1:
        return Interval(mean, math.nan, math.nan)
    half = float(special.stdtrit(len(data) - 1, _ENDS[1])) * float(data.std(ddof=1)) / math.sqrt(len(data))
    return Interval(mean, mean - half, mean + half)


def bootstrap_minimum(
    correct: ArrayLike, groups: ArrayLike, *, draws: int = 10_000, seed: int = 0
) -> Interval:
    """Return the worst group's accuracy with a bootstrap interval over images within groups.

    ``correct`` bool ``(N,)``, ``groups`` int ``(N,)``; groups without images do not take part. The minimum of
    noisy accuracies lies too low, and the minimum of resampled ones lower still: percentiles of the bootstrap
    would cover the true minimum of ten equal classes in 1% of the cases. Therefore the interval is the
    reflected (basic) one, which takes that bias back, together with the Wilson interval of the worst group,
    which keeps a width where the worst group has no success. On ten equal classes, the worst case, it covers
    83% instead of 95% (93 to 99% where the groups differ).
    """
    successes, counts = _of_groups(correct, groups)
    shares = successes / counts
    worst = int(shares.argmin())
    minimum = float(shares[worst])
    # Resampling n images with replacement from k successes in n is a binomial draw.
    rng = np.random.default_rng(derived_seed(seed, "bootstrap-minimum"))
    resampled = (rng.binomial(counts, shares, size=(draws, len(counts))) / counts).min(axis=1)
    low, high = np.quantile(resampled, _ENDS)
    own = wilson(int(successes[worst]), int(counts[worst]), float(special.ndtri(_ENDS[1])))
    return Interval(
        minimum,
        max(0.0, min(2 * minimum - float(high), own.low)),
        min(1.0, max(2 * minimum - float(low), own.high)),
    )


def worst_group(correct: ArrayLike, groups: ArrayLike) -> float:
    """Return the accuracy of the worst group with images; ``correct`` bool ``(N,)``, ``groups`` int ``(N,)``."""
    successes, counts = _of_groups(correct, groups)
    return float((successes / counts).min())


def _of_groups(correct: ArrayLike, groups: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how many images of each group with images are right, and how many it has."""
    right = np.asarray(correct, dtype=bool)
    member = np.asarray(groups, dtype=np.int64)
    if right.shape != member.shape or right.ndim != 1:
        raise UserError(f"correct {right.shape} and groups {member.shape} must be vectors of one length.")
    if right.size == 0:
        raise UserError("No images to take the worst group of: expected at least one.")
    counts = np.bincount(member)
    successes = np.bincount(member, weights=right).astype(np.int64)
    return successes[counts > 0], counts[counts > 0]


def paired_worst(first: ArrayLike, second: ArrayLike, groups: ArrayLike) -> Interval:
    """Return the worst group's accuracy of ``first`` minus that of ``second`` on the same images, one seed each.

    ``first`` and ``second`` bool ``(N,)``, ``groups`` int ``(N,)``. The interval is a bootstrap over images within
    groups that keeps both methods' answers to an image together, reflected as in :func:`bootstrap_minimum`; half an
    image in each cell (Agresti and Min 2005) keeps its width.
    """
    estimate = worst_group(first, groups) - worst_group(second, groups)
    ours, theirs, member = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool), np.asarray(groups)
    rng = np.random.default_rng(derived_seed(0, "bootstrap-paired-worst"))
    lowest = np.ones((2, 10_000))
    for group in np.unique(member):
        a, b = ours[member == group], theirs[member == group]
        cells = np.array([(a & b).sum(), (a & ~b).sum(), (~a & b).sum(), (~a & ~b).sum()]) + 0.5
        drawn = rng.multinomial(a.size, cells / cells.sum(), size=lowest.shape[1]) / a.size
        lowest = np.minimum(lowest, np.stack([drawn[:, 0] + drawn[:, 1], drawn[:, 0] + drawn[:, 2]]))
    low, high = np.quantile(lowest[0] - lowest[1], [0.025, 0.975])
    return Interval(
        estimate, min(estimate, 2 * estimate - float(high)), max(estimate, 2 * estimate - float(low))
    )


def _image_difference(
    first: NDArray[np.bool_], second: NDArray[np.bool_], draws: int, seed: int
) -> tuple[Interval, float]:
    """Bootstrap interval of a paired difference over images, and McNemar's exact p-value."""
    n = first.size
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    # Half an image in each of the four cells (Agresti and Min 2005): methods that never disagree on these
    # images still get an interval with a width.
    cells = np.array([only_first + 0.5, only_second + 0.5, n - only_first - only_second + 1.0]) / (n + 2)
    rng = np.random.default_rng(derived_seed(seed, "bootstrap-paired"))
    drawn = rng.multinomial(n, cells, size=draws)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, _ENDS)
    difference = (only_first - only_second) / n
    discordant = only_first + only_second
    p_value = min(1.0, 2 * float(special.bdtr(min(only_first, only_second), discordant, 0.5)))
    return Interval(difference, min(float(low), difference), max(float(high), difference)), p_value


def paired_difference(
    first: ArrayLike, second: ArrayLike, *, draws: int = 10_000, seed: int = 0
) -> PairedDifference:
    """Return the accuracy of ``first`` minus that of ``second``, paired by seed and image.

    Both bool ``(seeds, N)`` or ``(N,)``: whether each image was classified right; equal rows are one seed,
    equal columns one image.
    """
    a = np.atleast_2d(np.asarray(first, dtype=bool))
    b = np.atleast_2d(np.asarray(second, dtype=bool))
    if a.shape != b.shape or a.size == 0:
        raise UserError(f"Records of shape {a.shape} and {b.shape} cannot be paired: same seeds and images.")
    rows = [_image_difference(x, y, draws, seed) for x, y in zip(a, b, strict=True)]
    per_seed = tuple(interval for interval, _ in rows)
    images = a.shape[1]
    if len(rows) == 1:
        return PairedDifference(per_seed[0], rows[0][1], "images", per_seed, images, enough_images(images))
    differences = [interval.estimate for interval in per_seed]
    interval = t_interval(differences)
    return PairedDifference(interval, t_test(differences), "seeds", per_seed, images, enough_images(images))


def t_test(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of a mean difference of zero over two seeds or more.

    Equal differences have no spread to compare with: 1 if they are zero, else 0.
    """
    mean = float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    if error <= 1e-12:
        return 1.0 if abs(mean) <= 1e-12 else 0.0
    return float(2 * special.stdtr(len(differences) - 1, -abs(mean) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of several comparisons adjusted by Holm's step-down rule, in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def enough_images(count: int | Sequence[int]) -> bool:
    """Return whether every group has the images below which nothing is claimed."""
    counts: Any = [count] if isinstance(count, int) else count
    return all(int(c) >= MIN_IMAGES for c in counts)
