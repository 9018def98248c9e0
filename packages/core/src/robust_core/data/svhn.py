"""SVHN "format 2" as its authors pack it: ``{train,test}_32x32.mat``, in which 10 stands for the digit 0."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import torch

from robust_core.data.files import Raw, check_labels, plain_error
from robust_core.data.official import OFFICIAL_MD5
from robust_core.data.types import DatasetInfo
from robust_core.errors import UserError

__all__ = ["has_svhn", "read_svhn"]


def has_svhn(base: Path) -> bool:
    """Return whether ``base`` holds one of the files."""
    return any((base / f"{split}_32x32.mat").is_file() for split in ("train", "test"))


def read_svhn(base: Path, info: DatasetInfo, split: str) -> Raw:
    """Return the images of a split in the official order."""
    from scipy.io import loadmat

    ((name, md5),) = OFFICIAL_MD5["svhn"][split].items()
    path = base / name
    if not path.is_file():
        raise UserError(
            f"The file {path} is missing; put it beside the other split's or name another folder."
        )
    try:
        content = path.read_bytes()
        entry = loadmat(io.BytesIO(content), variable_names=["X", "y"])
        pixels, digits = entry["X"], entry["y"].reshape(-1)
    except Exception as error:  # a damaged file may raise anything
        raise UserError(
            f"The file {path} is truncated or corrupt ({plain_error(error)}); get a fresh copy."
        ) from error
    side = info.size
    if pixels.dtype != np.uint8 or pixels.shape != (side, side, 3, len(digits)):
        raise UserError(
            f"The file {path} holds X of shape {pixels.shape} and type {pixels.dtype}, expected uint8"
            f" ({side}, {side}, 3, {len(digits)}); get a fresh copy."
        )
    labels = torch.from_numpy(digits.astype(np.int64))
    labels = torch.where(labels == 10, 0, labels)
    return Raw(
        images=torch.from_numpy(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1))),
        labels=check_labels(labels, info, str(path)),
        digest=hashlib.sha256(content).hexdigest(),
        official=hashlib.md5(content, usedforsecurity=False).hexdigest() == md5,
    )
