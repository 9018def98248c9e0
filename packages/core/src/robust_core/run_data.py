"""The images of a run: training, validation and test, as its settings say, and what a record keeps of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from robust_core.config import RunConfig
from robust_core.data import ImageSet, class_balanced_subset, load_dataset, split_validation

__all__ = ["Data", "Say", "data_record", "load_data"]

Say = Callable[[str], None]
Data = tuple[ImageSet, "ImageSet | None", ImageSet]


def load_data(config: RunConfig, say: Say) -> Data:
    """Return the training images, the validation images (or None) and the test images."""

    def load(split: str) -> ImageSet:
        loaded = load_dataset(config.data, config.data_dir, split, log=say)
        for note in loaded.notes:
            say(note)
        return loaded

    train, test = load("train"), load("test")
    validation: ImageSet | None = None
    if train.info.own_validation:
        validation = load("validation")
    elif config.validation:
        train, validation = split_validation(train, config.validation, config.subset_seed)
    if config.train_subset:
        train = class_balanced_subset(train, config.train_subset, config.subset_seed)
    # indices are positions in the training set, by which a method keeps what belongs to an image
    return replace(train, indices=torch.arange(len(train))), validation, test


def data_record(data: Data) -> dict[str, Any]:
    """Return name, number of images and checksum of each split, by which a resumed run knows its data."""
    names = ("train", "validation", "test")
    return {
        name: None if part is None else {"name": part.info.name, "images": len(part), "sha256": part.digest}
        for name, part in zip(names, data, strict=True)
    }
