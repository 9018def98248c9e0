"""From the name of a data set and a folder to images in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from robust_core.data.archives import archive_path, read_archive
from robust_core.data.cifar import has_cifar, read_cifar
from robust_core.data.download import download_dataset
from robust_core.data.files import Raw
from robust_core.data.folders import read_folder
from robust_core.data.registry import dataset_info, list_datasets
from robust_core.data.shapes import load_shapes
from robust_core.data.svhn import has_svhn, read_svhn
from robust_core.data.tiny_imagenet import has_tiny_imagenet, read_tiny_imagenet
from robust_core.data.types import DatasetInfo, ImageSet
from robust_core.errors import UserError, unknown_name

__all__ = ["load_dataset"]

DEFAULT_ROOT = Path("data")


class _Layout(NamedTuple):
    tree: str
    exists: Callable[[Path, DatasetInfo], bool]
    read: Callable[[Path, DatasetInfo, str], Raw]


def _has_archives(base: Path, info: DatasetInfo) -> bool:
    return any(archive_path(base, info, split).is_file() for split in ("train", "test"))


def _has_class_folders(base: Path, info: DatasetInfo) -> bool:
    # class folders must be the data set's own: a parent folder may hold another set's train/
    return any(
        sub.is_dir() and sub.name in info.classes
        for split in ("train", "test")
        if (base / split).is_dir()
        for sub in (base / split).iterdir()
    )


_ARCHIVES = _Layout("{name}-jpeg-train.tar.xz, {name}-jpeg-test.tar.xz", _has_archives, read_archive)
_FOLDERS = _Layout(
    "train/<class>/*.png or *.jpg, test/<class>/...   (<class>: {some})", _has_class_folders, read_folder
)
_SVHN_FOLDERS = _Layout(
    "images/train/<digit>/*.png or *.jpg, images/test/<digit>/...",
    lambda base, info: _has_class_folders(base / "images", info),
    lambda base, info, split: read_folder(base / "images", info, split),
)
_LAYOUTS: dict[str, tuple[_Layout, ...]] = {
    "cifar10": (
        _Layout("cifar-10-batches-py/data_batch_1 ... data_batch_5, test_batch", has_cifar, read_cifar),
        _ARCHIVES,
        _FOLDERS,
    ),
    "cifar100": (_Layout("cifar-100-python/train, test", has_cifar, read_cifar), _ARCHIVES, _FOLDERS),
    "svhn": (
        _Layout("train_32x32.mat, test_32x32.mat", lambda base, _: has_svhn(base), read_svhn),
        _ARCHIVES,
        _FOLDERS,
        _SVHN_FOLDERS,
    ),
    "tiny-imagenet": (
        _Layout(
            "wnids.txt, train/<wnid>/images/*.JPEG, val/images/*.JPEG, val/val_annotations.txt",
            lambda base, _: has_tiny_imagenet(base),
            read_tiny_imagenet,
        ),
    ),
}
_FOLDER_NAMES = {
    "cifar10": ("cifar10", "CIFAR10", "cifar-10"),
    "cifar100": ("cifar100", "CIFAR100", "cifar-100"),
    "svhn": ("svhn", "SVHN"),
    "tiny-imagenet": ("tiny-imagenet-200", "tiny-imagenet"),
}
_DRAWN = ("shapes", "shapes-grouped")
_SPLIT_WORDS = {"train": "training"}


def load_dataset(
    name: str,
    root: str | Path | None = None,
    split: str = "train",
    *,
    download: bool = True,
    seed: int = 0,
    log: Callable[[str], None] | None = None,
) -> ImageSet:
    """Return a split of a data set, in memory.

    ``root`` is the data set's folder or its parent (default: ``data``); what is not there is downloaded
    there if ``download`` and the release may be. Drawn sets take no ``root``, only ``seed``. Official
    files keep their order; class folders and archives give the k-th image of each class in turn.
    ``log`` is told about downloads; what a user should know of the files stands in ``notes``. Raises
    ``UserError`` for unknown names, files that are missing (with the expected tree), damaged, empty or of
    another data set.
    """
    given: tuple[Any, Any, Any] = (name, root, split)
    if not isinstance(given[0], str):
        raise unknown_name("dataset", str(name), list_datasets())
    if given[1] is not None and not isinstance(given[1], str | os.PathLike):
        raise UserError(f"root is {root!r}, expected the path of a folder: give for example 'data'.")
    info = dataset_info(name)
    if not isinstance(given[2], str) or split not in info.official_counts:
        hint = ": split_validation() takes one from 'train'" if split == "validation" else ""
        known = unknown_name(f"split of {info.title}", str(split), info.official_counts)
        raise UserError(f"{str(known).rstrip('.')}{hint}.")
    if name in _DRAWN:
        return load_shapes(info, split, seed)
    folder = DEFAULT_ROOT if root is None else Path(root).expanduser()
    found = _find(folder, info)
    if found is None and download and (root is None or folder.is_dir()):
        download_dataset(info, _own_folder(folder, info), log, _expected(folder, info))
        found = _find(folder, info)
    if found is None:
        raise UserError(_expected(folder, info))
    base, layout = found
    raw = layout.read(base, info, split)
    if len(raw.labels) == 0:
        raise UserError(
            f"The files of {info.title} in {base} hold no image of split '{split}'; get a fresh copy."
        )
    return _image_set(raw, info, split)


def _own_folder(folder: Path, info: DatasetInfo) -> Path:
    names = _FOLDER_NAMES[info.name]
    return folder if folder.name in names else folder / names[0]


def _find(folder: Path, info: DatasetInfo) -> tuple[Path, _Layout] | None:
    bases = [folder, *(folder / name for name in _FOLDER_NAMES[info.name])]
    for base in bases:
        for layout in _LAYOUTS[info.name]:
            if base.is_dir() and layout.exists(base, info):
                return base, layout
    return None


def _expected(folder: Path, info: DatasetInfo) -> str:
    """Return the message that says what was looked for, with the tree."""
    state = f"holds no {info.title}" if folder.is_dir() else "is not a folder"
    if not folder.exists():
        state = "does not exist"
    some = ", ".join(info.classes[:3]) + ", ..."
    trees = [layout.tree.format(name=info.name, some=some) for layout in _LAYOUTS[info.name]]
    own = _own_folder(folder, info)
    lines = "\n".join(f"  {own}/{tree}" for tree in trees)
    source = " from http://cs231n.stanford.edu/tiny-imagenet-200.zip" if info.name == "tiny-imagenet" else ""
    return (
        f"{folder} {state}; name the folder that holds the data set or its parent, or put the files"
        f" there{source}. Expected {'one of' if len(trees) > 1 else 'this tree'}:\n{lines}"
    )


def _image_set(raw: Raw, info: DatasetInfo, split: str) -> ImageSet:
    count = len(raw.labels)
    notes = []
    if not raw.official or count != info.official_counts[split]:
        kind = _SPLIT_WORDS.get(split, split)
        of = f" of {len(raw.classes)} classes" if raw.classes and len(raw.classes) != info.num_classes else ""
        notes.append(f"{info.title}: {count:,} {kind} images{of}{raw.form}, not the official release")
    if info.name == "tiny-imagenet" and split == "test":
        notes.append(
            "Tiny-ImageNet: 'test' is the official validation split; the official test split has no labels"
        )
    if raw.classes is not None:
        info = replace(info, classes=raw.classes)
    return ImageSet(
        info=info,
        split=split,
        images=raw.images,
        labels=raw.labels,
        indices=torch.arange(count),
        digest=raw.digest,
        notes=tuple(notes),
    )
