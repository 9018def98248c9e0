"""Tiny-ImageNet from its original tree; a label is the rank of its class among those of ``wnids.txt``.

The official test split has no labels, so that ``test`` is the official validation split, as in
published results; ``validation`` names the same images. Selection should therefore use images that
leave the training split.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from robust_core.data.files import Raw, class_order, decode_images, digest_of, interleaved, plain_error
from robust_core.data.folders import image_files, read_bytes
from robust_core.data.types import DatasetInfo
from robust_core.errors import UserError

__all__ = ["has_tiny_imagenet", "read_tiny_imagenet"]


def has_tiny_imagenet(base: Path) -> bool:
    """Return whether ``base`` holds the original tree."""
    return (base / "wnids.txt").is_file()


def read_tiny_imagenet(base: Path, info: DatasetInfo, split: str) -> Raw:
    """Return the images of a split, the k-th of each class in turn."""
    classes = tuple(sorted(_lines(base / "wnids.txt")))
    if not classes or len(set(classes)) != len(classes):
        raise UserError(f"{base / 'wnids.txt'} should list each class once, one per line; get a fresh copy.")
    files = _train_files(base, classes) if split == "train" else _val_files(base, classes)
    places = interleaved([len(paths) for paths in files])
    if not places:
        raise UserError(f"No images of split {split!r} in {base}; get a fresh copy of {info.title}.")
    encoded = [(str(files[label][k]), read_bytes(files[label][k])) for label, k in places]
    hashes = [
        (Path(path).relative_to(base).as_posix(), hashlib.sha256(content).hexdigest())
        for path, content in encoded
    ]
    return Raw(
        images=decode_images(encoded, info.size),
        labels=torch.tensor([label for label, _ in places]),
        digest=digest_of(hashes),
        classes=classes,
        official=len(classes) == info.num_classes,
    )


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The file {path} cannot be read ({plain_error(error)}); get a fresh copy."
        ) from error


def _train_files(base: Path, classes: tuple[str, ...]) -> list[list[Path]]:
    folders = [base / "train" / name / "images" for name in classes]
    missing = next((folder for folder in folders if not folder.is_dir()), None)
    if missing is not None:
        raise UserError(f"The folder {missing} of a class in wnids.txt is missing; get a fresh copy.")
    return [image_files(folder) for folder in folders]


def _val_files(base: Path, classes: tuple[str, ...]) -> list[list[Path]]:
    annotations = base / "val" / "val_annotations.txt"
    label_of = {name: label for label, name in enumerate(classes)}
    names: list[list[str]] = [[] for _ in classes]
    for number, line in enumerate(_lines(annotations), start=1):
        fields = line.split()
        if len(fields) < 2 or fields[1] not in label_of or "/" in fields[0]:
            raise UserError(
                f"Line {number} of {annotations} is {line!r}, expected a file name and one of the"
                f" {len(classes)} classes of wnids.txt; get a fresh copy."
            )
        names[label_of[fields[1]]].append(fields[0])
    return [[base / "val" / "images" / name for name in class_order(some)] for some in names]
