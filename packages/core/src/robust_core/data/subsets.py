"""Class-balanced subsets, drawn from a seed."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_core.data.types import ImageSet
from robust_core.errors import UserError
from robust_core.randomness import generator_for

__all__ = ["class_balanced_subset", "split_validation"]


def class_balanced_subset(dataset: ImageSet, count: int, seed: int) -> ImageSet:
    """Return ``count`` images with equal numbers per class, in the order of ``dataset``.

    Numbers per class differ by at most one, unless a class has too few images: then the others fill in.
    """
    _check_count(dataset, count, least=1, flag="--train-subset")
    return dataset.subset(_balanced_positions(dataset, count, seed, "subset"))


def split_validation(dataset: ImageSet, count: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Return (the rest, ``count`` class-balanced images for validation); 0 leaves validation empty."""
    _check_count(dataset, count, least=0, flag="--validation")
    if count == len(dataset):
        raise UserError(
            f"--validation {count} leaves none of {dataset.info.title}'s {len(dataset)} training images to train on; "
            "take fewer."
        )
    taken = _balanced_positions(dataset, count, seed, "validation")
    rest = torch.ones(len(dataset), dtype=torch.bool, device=dataset.labels.device)
    rest[taken] = False
    return dataset.subset(rest.nonzero().squeeze(1)), dataset.subset(taken)


def _check_count(dataset: ImageSet, count: int, least: int, flag: str) -> None:
    if not least <= count <= len(dataset):
        raise UserError(
            f"{flag} {count} is not possible: {dataset.info.title} has {len(dataset)} images to take from; expected "
            f"{least} to {len(dataset)}."
        )


def _balanced_positions(dataset: ImageSet, count: int, seed: int, purpose: str) -> Tensor:
    """Return sorted positions: one image of each class, then a second one, until ``count`` is reached."""
    labels = dataset.labels.cpu()
    classes = dataset.info.num_classes
    generator = generator_for(seed, purpose)
    shuffled = torch.randperm(len(labels), generator=generator)
    turn_of_class = torch.randperm(classes, generator=generator)  # who gets the odd ones
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    sizes = torch.bincount(labels, minlength=classes)
    starts = sizes.cumsum(0) - sizes
    round_of_image = torch.arange(len(labels)) - starts[labels[by_class]]
    turn = round_of_image * classes + turn_of_class[labels[by_class]]
    return by_class[turn.argsort(stable=True)[:count]].sort().values.to(dataset.labels.device)
