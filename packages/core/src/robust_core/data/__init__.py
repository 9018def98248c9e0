"""Images in [0, 1] with label, group and index: registry, readers, subsets, batches, drawn sets."""

from __future__ import annotations

from robust_core.data.augment import resized_crops
from robust_core.data.batches import batches, crop_and_flip, epoch_order, steps_per_epoch
from robust_core.data.celeba import read_celeba
from robust_core.data.covid import read_covid
from robust_core.data.decoded import load_table
from robust_core.data.groups import check_groups, group_counts, group_index, group_names
from robust_core.data.label_shift import long_tailed, with_classes_as_groups
from robust_core.data.listed import read_listed
from robust_core.data.load import load_dataset
from robust_core.data.registry import dataset_info, list_datasets
from robust_core.data.sampling import balanced_order, sample_weights
from robust_core.data.shapes import SHAPES_VERSION
from robust_core.data.subsets import class_balanced_subset, split_validation
from robust_core.data.transforms import Pipeline, published_pipeline
from robust_core.data.types import Batch, DatasetInfo, ImageSet
from robust_core.data.waterbirds import read_waterbirds

__all__ = [
    "SHAPES_VERSION",
    "Batch",
    "DatasetInfo",
    "ImageSet",
    "Pipeline",
    "balanced_order",
    "batches",
    "check_groups",
    "class_balanced_subset",
    "crop_and_flip",
    "dataset_info",
    "epoch_order",
    "group_counts",
    "group_index",
    "group_names",
    "list_datasets",
    "load_dataset",
    "load_table",
    "long_tailed",
    "published_pipeline",
    "read_celeba",
    "read_covid",
    "read_listed",
    "read_waterbirds",
    "resized_crops",
    "sample_weights",
    "split_validation",
    "steps_per_epoch",
    "with_classes_as_groups",
]
