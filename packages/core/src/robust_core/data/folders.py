"""A folder of class folders of images: ``{train,test}/<class>/*.png``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

from robust_core.data.files import (
    IMAGE_SUFFIXES,
    Raw,
    class_order,
    decode_images,
    digest_of,
    interleaved,
    plain_error,
)
from robust_core.data.types import DatasetInfo
from robust_core.errors import UserError

__all__ = ["from_class_folders", "image_files", "read_folder"]


def image_files(folder: Path) -> list[Path]:
    """Return the images of one folder in natural order (9 before 10)."""
    names = {
        p.name: p
        for p in folder.iterdir()
        if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
    }
    return [names[name] for name in class_order(names)]


def read_bytes(path: Path) -> bytes:
    """Return a file's content; a file that cannot be read is named."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"The image {path} cannot be read ({plain_error(error)}); replace or remove it."
        ) from error


def read_folder(base: Path, info: DatasetInfo, split: str) -> Raw:
    """Return the images of ``base/split/<class>/*``, the k-th of each class in turn.

    A file ``fine_label_names.txt`` in ``base`` must list the classes in the order of their labels.
    """
    folder = base / split
    if not folder.is_dir():
        raise UserError(
            f"The folder {folder} is missing; put it beside the other split's or name another folder."
        )
    _check_names(base / "fine_label_names.txt", info)
    folders = {
        sub.name: {path.name: read_bytes(path) for path in image_files(sub)}
        for sub in folder.iterdir()
        if sub.is_dir() and not sub.name.startswith(".")
    }
    hashes = [
        (f"{split}/{name}/{file}", hashlib.sha256(content).hexdigest())
        for name, files in folders.items()
        for file, content in files.items()
    ]
    return from_class_folders(folders, info, str(folder), digest_of(hashes) if hashes else "")


def _check_names(path: Path, info: DatasetInfo) -> None:
    if not path.is_file():
        return
    names = tuple(path.read_text(encoding="utf8").split())
    if names != info.classes:
        wrong = next((a for a, b in zip(names, info.classes, strict=False) if a != b), f"{len(names)} names")
        raise UserError(
            f"{path} does not list {info.title}'s {info.num_classes} classes in the order of their labels"
            f" (first difference: {wrong}); repair or remove it."
        )


def from_class_folders(
    folders: Mapping[str, Mapping[str, bytes]], info: DatasetInfo, source: str, digest: str
) -> Raw:
    """Return images given as class -> file name -> content; ``source`` is named in errors."""
    unknown = sorted(set(folders) - set(info.classes))
    if unknown:
        raise UserError(
            f"The class folder {unknown[0]!r} in {source} is no class of {info.title}; expected"
            f" {', '.join(info.classes[:10])}{', ...' if info.num_classes > 10 else ''}."
        )
    ordered = [class_order(folders.get(name, {})) for name in info.classes]
    places = interleaved([len(names) for names in ordered])
    if not places:
        raise UserError(
            f"No images in {source}; expected <class>/<image>.png or .jpg for the classes of {info.title}."
        )
    encoded = [
        (
            f"{source}/{info.classes[label]}/{ordered[label][k]}",
            folders[info.classes[label]][ordered[label][k]],
        )
        for label, k in places
    ]
    jpeg = any(name.lower().endswith((".jpg", ".jpeg")) for name, _ in encoded)
    return Raw(
        images=decode_images(encoded, info.size),
        labels=torch.tensor([label for label, _ in places]),
        digest=digest,
        form=" as JPEG" if jpeg else " as image files",
    )
