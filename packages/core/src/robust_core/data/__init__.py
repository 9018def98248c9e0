"""Images in [0, 1] with label, group and index: registry, readers, subsets, batches, drawn sets."""

from __future__ import annotations

from robust_core.data.batches import batches, crop_and_flip, epoch_order, steps_per_epoch
from robust_core.data.load import load_dataset
from robust_core.data.registry import dataset_info, list_datasets
from robust_core.data.shapes import SHAPES_VERSION
from robust_core.data.subsets import class_balanced_subset, split_validation
from robust_core.data.types import Batch, DatasetInfo, ImageSet

__all__ = [
    "SHAPES_VERSION",
    "Batch",
    "DatasetInfo",
    "ImageSet",
    "batches",
    "class_balanced_subset",
    "crop_and_flip",
    "dataset_info",
    "epoch_order",
    "list_datasets",
    "load_dataset",
    "split_validation",
    "steps_per_epoch",
]
