"""What every reader of image files shares: checks, order, decoding, digests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_core.data.types import DatasetInfo
from robust_core.errors import UserError
from robust_core.image_files import DamagedImage, open_image, plain_error, to_rgb

__all__ = [
    "IMAGE_SUFFIXES",
    "Raw",
    "check_labels",
    "class_order",
    "decode_images",
    "digest_of",
    "interleaved",
    "plain_error",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


class Raw(NamedTuple):
    """What a reader gives.

    ``images`` uint8 ``(N, 3, H, W)``, ``labels`` int64 ``(N,)``; ``digest`` is that of the files.
    ``official`` says whether these are the bytes of the official release. ``form`` ends the line that
    tells the user otherwise ("as JPEG").
    """

    images: Tensor
    labels: Tensor
    digest: str
    classes: tuple[str, ...] | None = None
    official: bool = False
    form: str = ""


def digest_of(files: Sequence[tuple[str, str]]) -> str:
    """Return one digest of (name, SHA-256) pairs: that of the only file, or of ``sha256sum``'s list."""
    if len(files) == 1:
        return files[0][1]
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files))
    return hashlib.sha256(lines.encode("utf8")).hexdigest()


def check_labels(labels: Tensor, info: DatasetInfo, source: str) -> Tensor:
    """Return ``labels`` after a check that each is a class of the data set."""
    wrong = labels[(labels < 0) | (labels >= info.num_classes)]
    if wrong.numel():
        raise UserError(
            f"Label {int(wrong[0])} in {source} is out of range; {info.title} has the labels 0 to"
            f" {info.num_classes - 1}: repair or replace the file."
        )
    return labels


def class_order(names: Iterable[str]) -> list[str]:
    """Return file names sorted so that 9 comes before 10."""

    def key(name: str) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", name)  # text and numbers in turn
        return [(int(part) if place % 2 else 0, part) for place, part in enumerate(parts)]

    return sorted(names, key=key)


def interleaved(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return (class, k) for the k-th image of each class in turn, so that the first N are class-balanced.

    >>> interleaved([2, 1])
    [(0, 0), (1, 0), (0, 1)]
    """
    return [(label, k) for k in range(max(sizes, default=0)) for label, size in enumerate(sizes) if k < size]


def decode_images(encoded: Sequence[tuple[str, bytes]], size: int) -> Tensor:
    """Return (name, file content) pairs as uint8 RGB ``(N, 3, size, size)``; a bad image is named.

    Grey images become RGB. Only PNG, JPEG and BMP are read.
    """
    images = np.empty((len(encoded), 3, size, size), dtype=np.uint8)
    for row, (name, content) in enumerate(encoded):
        images[row] = _decode(name, content, size).transpose(2, 0, 1)
    return torch.from_numpy(images)


def _decode(name: str, content: bytes, size: int) -> NDArray[np.uint8]:
    try:
        image = open_image(content)
        if image.size == (size, size):  # looked at before any pixel is decoded
            return np.asarray(to_rgb(image))
    except DamagedImage as error:
        raise UserError(f"The image {name} cannot be used ({error}); replace or remove it.") from error
    width, height = image.size
    raise UserError(
        f"The image {name} has {width}x{height} pixels, expected {size}x{size}; resize or remove it."
    )
