"""The images of a run of ``run_expt.py``: tables, CIFAR-10 with classes as groups, drawn shapes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gdro_at.config import GdroConfig
from robust_core.data import (
    ImageSet,
    class_balanced_subset,
    crop_and_flip,
    load_dataset,
    split_validation,
)
from robust_core.data.celeba import read_celeba
from robust_core.data.covid import read_covid
from robust_core.data.decoded import load_table
from robust_core.data.groups import check_groups
from robust_core.data.label_shift import (
    label_shift_positions,
    long_tailed,
    train_val_split,
    training_fraction,
    with_classes_as_groups,
)
from robust_core.data.listed import read_listed
from robust_core.data.table import SPLITS, ImageTable
from robust_core.data.transforms import Pipeline, published_pipeline
from robust_core.data.waterbirds import read_waterbirds
from robust_core.errors import UserError
from robust_core.randomness import generator_for
from robust_core.run_data import Data, Say

__all__ = ["fair_order", "load_groups", "pipeline_of", "read_table"]

TABLES = ("CUB", "CelebA", "Covid", "table")
CIFAR = ("CIFAR10", "Cifar")


def load_groups(config: GdroConfig, say: Say) -> Data:
    """Return training, validation and test images with groups; says what a user should know of them.

    The first images of validation and test split are a fair sample, as ``--test-images`` and the like take them:
    CIFAR-10 and drawn images are in random order anyway, those of a table are ordered by :func:`fair_order` where such
    a flag is given. They are then read into memory.

    Raises:
        UserError: for files that are missing or damaged, groups without training images, wrong rows of a table.
    """
    if config.dataset in TABLES:
        data = _ordered(config, _tables(config, say))
    elif config.dataset in CIFAR:
        data = _cifar(config, say)
    else:
        data = _shapes(config, say)
    train, validation, test = data
    if config.train_subset:
        train = class_balanced_subset(train, config.train_subset, config.subset_seed)
        _refuse_emptied(train, f"--train-subset {config.train_subset}", "take more images, or 0 for all")
    train = replace(train, indices=torch.arange(len(train)))
    return train, validation, test


def read_table(config: GdroConfig) -> ImageTable:
    """Return the table of the configured data set, with the published subset of ``--fraction``; no image is read.

    Raises:
        UserError: for missing files, wrong rows, a group without training images in the table or behind ``--fraction``.
    """
    root, target = config.root_dir or config.data_dir, config.target_name or ""
    names = tuple((config.confounder_names or "").split(","))
    if config.dataset == "CUB":
        table = read_waterbirds(root, target, names)
    elif config.dataset == "CelebA":
        table = read_celeba(root, target, names)
    elif config.dataset == "Covid":
        target, names = target or "Covid", names if config.confounder_names else ("hospital",)
        table = read_covid(root, target, names, official=config.official, seed=config.seed)
    else:
        table = read_listed(config.metadata or "", target, names, root=root)
    table = replace(table, notes=(*table.notes, *check_groups(table)))
    if config.fraction < 1.0:
        kept = training_fraction(table.positions("train"), config.fraction, config.seed)
        _refuse_without(table.groups[kept], table.info.groups or (), *_fraction(config))
        others = torch.cat([table.positions(split) for split in SPLITS[1:]])
        table = table.select(torch.cat([kept, others]).sort().values)
    return table


def pipeline_of(config: GdroConfig) -> Pipeline:
    """Return the deterministic transform; CelebA's stretch for ``resnet34`` only with ``--official``."""
    stretched = config.official and config.dataset == "CelebA" and config.model == "resnet34"
    return published_pipeline(config.dataset.lower(), config.image_size, official=stretched)


def _tables(config: GdroConfig, say: Say) -> Data:
    table = read_table(config)
    for note in table.notes:
        say(note)
    table = replace(table, notes=())
    # published: CelebA's crops are at least as wide as high
    ratio = (1.0, 4 / 3) if config.dataset == "CelebA" else table.info.crop_ratio
    info = replace(table.info, resized_crop=config.augment_data, flip=config.augment_data, crop_ratio=ratio)
    table = replace(table, info=info)
    parts = []
    for split in SPLITS:
        loaded = load_table(
            table,
            split,
            pipeline_of(config),
            cache_dir=None if config.cache_dir is None else Path(config.cache_dir),
            workers=config.workers or None,
            skip_unreadable=config.skip_unreadable,
            log=say,
        )
        _tell(loaded, say)
        parts.append(loaded)
    if config.skip_unreadable:
        for part in parts:
            _check_left(part, say)
    return parts[0], parts[1], parts[2]


def fair_order(groups: Tensor, seed: int) -> Tensor:
    """Return an order of images with ``groups`` ``(N,)``, int64 ``(N,)``, any first of which are a fair sample.

    Within a group the order is random. Of the first n, each group has its share of n, rounded so that they sum to n
    (Sainte-Lague).
    """
    shuffled = torch.randperm(len(groups), generator=generator_for(seed, "fair order"))
    units, counts = groups[shuffled], torch.bincount(groups)
    by_group = units.argsort(stable=True)
    turns = torch.empty_like(units)
    turns[by_group] = torch.arange(len(groups)) - (counts.cumsum(0) - counts)[units[by_group]]
    return shuffled[((turns + 0.5).double() / counts[units]).argsort(stable=True)]


def _ordered(config: GdroConfig, data: Data) -> Data:
    """Return a table's splits, those of which a flag takes the first images in fair order."""
    train, validation, test = data
    if validation is not None and config.validation_images:
        validation = _in_fair_order(validation, config.subset_seed)
    if config.test_images or config.suite_images or config.sweep_images:
        test = _in_fair_order(test, config.subset_seed)
    return train, validation, test


def _in_fair_order(part: ImageSet, seed: int) -> ImageSet:
    units = part.labels if part.groups is None else part.groups
    return _changed(part.subset(fair_order(units, seed)), f"fair order, seed {seed}")


def _changed(part: ImageSet, how: str) -> ImageSet:
    """Return a set whose digest, which was that of its files, also tells what was made of them."""
    return replace(part, digest=hashlib.sha256(f"{part.digest} {how}".encode()).hexdigest())


def _check_left(part: ImageSet, say: Say) -> None:
    """Refuse training images, and tell of others, that leave a group without any, once unreadable ones are left out."""
    absent = " and ".join(
        _absent(part.labels if part.groups is None else part.groups, part.info.groups or ())
    )
    if absent and part.split == "train":
        raise UserError(
            f"No readable training image of {absent} is left; repair some of them, or choose another target or "
            "confounder."
        )
    if absent:
        say(f"{part.info.title}: no readable {part.split} image of {absent}")


def _absent(groups: Tensor, names: Sequence[str]) -> list[str]:
    """Return the names, in quotes, of the groups that ``groups`` ``(N,)`` has no image of."""
    counts = torch.bincount(groups, minlength=len(names)).tolist()
    return [repr(name) for name, count in zip(names, counts, strict=True) if not count]


def _fraction(config: GdroConfig) -> tuple[str, str]:
    """Return ``--fraction`` with its value, and what to do where it leaves too few images."""
    return f"--fraction {config.fraction:g}", "take a larger one"


def _refuse_emptied(train: ImageSet, flag: str, remedy: str) -> None:
    """Refuse training images of which a ``flag`` with its value has left a group (before groups are: a class) none."""
    groups = train.labels if train.groups is None else train.groups
    _refuse_without(groups, train.info.groups or train.info.classes, flag, remedy)


def _refuse_without(groups: Tensor, names: Sequence[str], flag: str, remedy: str) -> None:
    absent = _absent(groups, names)
    if not absent:
        return
    which = f"of the group{'s' if len(absent) > 1 else ''} {' and '.join(absent)}"
    raise UserError(f"{flag} leaves no training image {which if len(groups) else 'at all'}; {remedy}.")


def _shapes(config: GdroConfig, say: Say) -> Data:
    del say
    parts = [load_dataset("shapes-grouped", None, split) for split in SPLITS]
    train = parts[0]
    flip = replace(train.info, crop_padding=4 if config.augment_data else 0, flip=config.augment_data)
    train = replace(train, info=flip)
    if config.fraction < 1.0:
        train = _of_fraction(config, train)
    return train, parts[1], parts[2]


def _of_fraction(config: GdroConfig, train: ImageSet) -> ImageSet:
    train = train.subset(training_fraction(torch.arange(len(train)), config.fraction, config.seed))
    _refuse_emptied(train, *_fraction(config))
    return train


def _cifar(config: GdroConfig, say: Say) -> Data:
    """Return CIFAR-10 with classes as groups: as it is, long-tailed, or with the published label shift."""
    root = config.root_dir or config.data_dir

    def load(split: str) -> ImageSet:
        loaded = load_dataset("cifar10", root, split, log=say)
        _tell(loaded, say)
        return loaded

    whole, test = load("train"), load("test")
    _refuse_emptied(whole, f"What was found of {whole.info.title}", "complete it")
    shifted = config.shift_type == "label_shift_step"
    if shifted:
        kept, apart = train_val_split(len(whole), config.val_fraction, config.seed)
        train, validation = whole.subset(kept), whole.subset(apart)
        _refuse_emptied(train, f"--val-fraction {config.val_fraction:g}", "take a smaller one")
        train = train.subset(_shift(config, train.labels))
        _refuse_emptied(train, f"--imbalance-ratio {config.imbalance_ratio or 1:g}", "take a smaller one")
    else:
        train, validation = split_validation(whole, config.validation, config.subset_seed)
        _refuse_emptied(train, f"--validation {config.validation}", "take fewer images")
        if config.fraction < 1.0:
            train = _of_fraction(config, train)
        if config.imbalance_ratio is not None:
            train = long_tailed(train, config.imbalance_ratio, config.subset_seed)
    official = config.official and shifted
    train, validation, test = (
        with_classes_as_groups(part, official=official) for part in (train, validation, test)
    )
    if shifted and not len(validation):
        raise UserError(
            f"--val-fraction {config.val_fraction} leaves none of {len(whole)} images for validation; take a larger "
            "share."
        )
    # officially swapped: crop and flip without --augment_data, none with it; and validation and test as training
    augmented = config.augment_data != config.swaps_augmentation
    if not augmented:
        train = replace(train, info=replace(train.info, crop_padding=0, flip=False))
    elif config.swaps_augmentation:
        validation, test = (_published_random_images(part, config.seed) for part in (validation, test))
    return train, validation if len(validation) else None, test


def _shift(config: GdroConfig, labels: Tensor) -> Tensor:
    return label_shift_positions(
        labels,
        10,
        minority_fraction=config.minority_fraction or 0.0,
        imbalance_ratio=config.imbalance_ratio or 1.0,
        seed=config.seed,
    )


def _published_random_images(part: ImageSet, seed: int) -> ImageSet:
    """Return images that are cropped and flipped at random, once, as the published evaluation does to its images."""
    generator = generator_for(seed, f"published {part.split} transform")
    offsets = torch.randint(0, 9, (len(part), 2), generator=generator)
    flips = torch.rand(len(part), generator=generator) < 0.5
    moved = replace(part, images=crop_and_flip(part.images, offsets, flips, 4))
    return _changed(moved, f"published transform, seed {seed}")


def _tell(loaded: ImageSet, say: Callable[[str], None]) -> None:
    for note in loaded.notes:
        say(note)
