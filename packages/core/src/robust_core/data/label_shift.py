"""Which images remain when the proportions of classes are changed: label shift, long tails, splits and fractions.

Every function goes from labels (or a number of images) to positions. The published draws come from numpy's
legacy generator, seeded anew (golden README, part 1); our own from :func:`robust_core.randomness.generator_for`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from robust_core.data.types import ImageSet
from robust_core.errors import UserError
from robust_core.randomness import generator_for

__all__ = [
    "label_shift_positions",
    "legacy_generator",
    "long_tailed",
    "long_tailed_counts",
    "long_tailed_positions",
    "subsample",
    "train_val_split",
    "training_fraction",
    "with_classes_as_groups",
]

_PUBLISHED_CIFAR10 = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_ROUNDING = 1 + 1e-12


def legacy_generator(seed: int) -> np.random.RandomState:
    """Return numpy's legacy generator, which draws what the published code draws after ``numpy.random.seed(seed)``."""
    if not 0 <= seed < 2**32:
        raise UserError(
            f"seed is {seed}, but a published draw takes one from 0 to 2^32 - 1; choose another seed."
        )
    return np.random.RandomState(seed)


def label_shift_positions(
    labels: Tensor, classes: int, *, minority_fraction: float, imbalance_ratio: float, seed: int
) -> Tensor:
    """Return the positions that remain of ``labels`` ``(N,)``, int64, class after class, shuffled in each.

    The last classes, a share ``minority_fraction``, keep ``1 / imbalance_ratio`` times the images of the others,
    of which as many remain as the smallest class allows.
    """
    if not 0 <= minority_fraction <= 1:
        raise UserError(
            f"minority_fraction is {minority_fraction}, expected a share of the classes from 0 to 1."
        )
    if not 1 <= imbalance_ratio < math.inf:
        raise UserError(
            f"imbalance_ratio is {imbalance_ratio}, expected a number of at least 1, for example 10."
        )
    counts = _counts_of_all(labels, classes)
    majority = torch.arange(classes) < (1 - minority_fraction) * classes
    big = int(torch.where(majority, counts.float(), counts.float() * imbalance_ratio).min())
    small = math.floor(big / imbalance_ratio)
    generator = legacy_generator(seed)
    kept = []
    for label in range(classes):
        members = torch.nonzero(labels == label).squeeze(1).numpy()
        generator.shuffle(members)
        kept.append(members[: big if majority[label] else small])
    return torch.from_numpy(np.concatenate(kept))


def train_val_split(n: int, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the positions (training, validation) of ``n`` images, int64, unsorted, as published."""
    shuffled, cut = _shuffled(n, seed), _share(n, val_fraction, "val_fraction")
    return shuffled[cut:], shuffled[:cut]


def subsample(n: int, fraction: float, seed: int) -> Tensor:
    """Return the positions of a ``fraction`` of ``n`` images, int64, unsorted, as published."""
    return _shuffled(n, seed)[: _share(n, fraction, "fraction")]


def training_fraction(positions: Tensor, fraction: float, seed: int) -> Tensor:
    """Return a ``fraction`` of the training split's ``positions``, ascending, as published (``--fraction``).

    Drawn uniformly: a group of few images may lose all of them.
    """
    cut = _share(len(positions), fraction, "fraction")
    drawn = legacy_generator(seed).permutation(positions.numpy())[:cut]
    return torch.from_numpy(np.sort(drawn))


def _shuffled(n: int, seed: int) -> Tensor:
    order = np.arange(n)
    legacy_generator(seed).shuffle(order)
    return torch.from_numpy(order)


def _share(n: int, fraction: float, what: str) -> int:
    if not 0 <= fraction <= 1:
        raise UserError(f"{what} is {fraction}, expected a share of the {n} images from 0 to 1.")
    return round(fraction * n)  # half to even, as numpy's


def _falling(classes: int, ratio: float) -> Tensor:
    if not 1 <= ratio < math.inf:
        raise UserError(f"The imbalance ratio is {ratio}, expected a number of at least 1, for example 100.")
    if classes < 2:
        raise UserError(f"A long tail of {classes} class was asked for, expected at least two classes.")
    return float(ratio) ** (-torch.arange(classes, dtype=torch.float64) / (classes - 1))


def long_tailed_counts(largest: int, classes: int, ratio: float) -> Tensor:
    """Return ``floor(largest * ratio^(-k / (classes - 1)))`` for each class k, int64 ``(classes,)``."""
    # 5000 / 100 shall stay 50 whatever the last bit of the power is
    return (largest * _falling(classes, ratio) * _ROUNDING).floor().long()


def long_tailed_positions(labels: Tensor, classes: int, ratio: float, seed: int) -> Tensor:
    """Return the positions of a long-tailed subset of ``labels`` ``(N,)``, int64, ascending.

    Class 0 keeps the most images, as many as all classes allow at this ``ratio``; the last one ``1 / ratio`` of
    them (:func:`long_tailed_counts`). With one seed, a larger ratio on equal classes keeps a part of what a
    smaller one does.
    """
    counts = _counts_of_all(labels, classes)
    largest = int((counts / _falling(classes, ratio) * _ROUNDING).min())
    wanted = torch.minimum(long_tailed_counts(largest, classes, ratio), counts)
    if int(wanted[-1]) == 0:
        raise UserError(
            f"The imbalance ratio {ratio} leaves class {classes - 1} no image, as class 0 keeps {largest}; take a"
            " smaller ratio."
        )
    shuffled = torch.randperm(len(labels), generator=generator_for(seed, "long tail"))
    return (
        torch.cat([shuffled[labels[shuffled] == k][: int(wanted[k])] for k in range(classes)]).sort().values
    )


def _counts_of_all(labels: Tensor, classes: int) -> Tensor:
    counts = torch.bincount(labels, minlength=classes)
    if bool((counts == 0).any()):
        raise UserError(
            f"Class {int((counts == 0).nonzero()[0])} of {classes} has no image, so that no proportion of classes"
            " can be made; take a larger set."
        )
    return counts


def with_classes_as_groups(image_set: ImageSet, official: bool = False) -> ImageSet:
    """Return the set with its labels as groups, called like the classes.

    ``official`` calls them ``Y = k (name)``, with the short names of CIFAR-10, as the published label shift does.
    """
    names = image_set.info.classes
    if official:
        words = _PUBLISHED_CIFAR10 if image_set.info.name == "cifar10" else names
        names = tuple(f"Y = {k} ({word})" for k, word in enumerate(words))
    return replace(image_set, info=replace(image_set.info, groups=names), groups=image_set.labels)


def long_tailed(image_set: ImageSet, ratio: float, seed: int) -> ImageSet:
    """Return a long-tailed subset (:func:`long_tailed_positions`), in the order of ``image_set``."""
    labels = image_set.labels.cpu()
    positions = long_tailed_positions(labels, image_set.info.num_classes, ratio, seed)
    return image_set.subset(positions.to(image_set.labels.device))
