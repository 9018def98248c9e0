"""CIFAR-10 and CIFAR-100 as their authors pack them: pickles, read without executing any.

The files (torchvision's layout) hold a dictionary of bytes, lists of numbers and a numpy array. The
reader below builds these and refuses everything else that a pickle can ask for.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from robust_core.data.files import Raw, check_labels, digest_of, plain_error
from robust_core.data.official import CIFAR_FOLDERS, OFFICIAL_MD5
from robust_core.data.types import DatasetInfo
from robust_core.errors import UserError

__all__ = ["has_cifar", "load_plain_pickle", "read_cifar"]


def _folder(base: Path, info: DatasetInfo) -> Path:
    folder = CIFAR_FOLDERS[info.name]
    return base if base.name == folder else base / folder


def has_cifar(base: Path, info: DatasetInfo) -> bool:
    """Return whether ``base`` is, or holds, the folder of the authors' files."""
    return _folder(base, info).is_dir()


def read_cifar(base: Path, info: DatasetInfo, split: str) -> Raw:
    """Return the images of a split in the official order."""
    folder = _folder(base, info)
    expected = OFFICIAL_MD5[info.name][split]
    present = [name for name in expected if (folder / name).is_file()]
    if not present:
        raise UserError(
            f"The folder {folder} holds no {', '.join(expected)}; get a fresh copy of {info.title}."
        )
    images, labels, hashes, official = [], [], [], len(present) == len(expected)
    for name in present:
        path = folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"The file {path} cannot be read ({plain_error(error)}); get a fresh copy."
            ) from error
        hashes.append((name, hashlib.sha256(content).hexdigest()))
        official &= hashlib.md5(content, usedforsecurity=False).hexdigest() == expected[name]
        pixels, classes = _read_batch(content, path, info)
        images.append(pixels)
        labels.append(classes)
    return Raw(
        images=torch.from_numpy(np.concatenate(images)),
        labels=torch.cat(labels),
        digest=digest_of(hashes),
        official=official,
    )


def _read_batch(content: bytes, path: Path, info: DatasetInfo) -> tuple[NDArray[np.uint8], torch.Tensor]:
    entry = load_plain_pickle(content, path)
    if isinstance(entry, dict):  # Python 2 wrote the official files: their keys are bytes
        entry = {
            key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in entry.items()
        }
        data = entry.get("data")
        labels = entry.get("labels" if info.name == "cifar10" else "fine_labels")
        data = data.array(path) if isinstance(data, _Array) else data
        labels = labels.array(path).tolist() if isinstance(labels, _Array) else labels
        if (
            isinstance(data, np.ndarray)
            and data.dtype == np.uint8
            and isinstance(labels, list)
            and all(type(label) is int for label in labels)
            and data.shape == (len(labels), 3 * info.size**2)
        ):
            checked = check_labels(torch.tensor(labels, dtype=torch.int64), info, str(path))
            return data.reshape(-1, 3, info.size, info.size), checked
    raise UserError(f"The file {path} does not hold a batch of {info.title}; get a fresh copy.")


class _Dtype:
    """Stands for a numpy dtype: the name is all that is kept."""

    def __init__(self, name: object, *_: object) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else str(name)

    def __setstate__(self, state: object) -> None:
        pass  # byte order and alignment: the reader asks for little-endian numbers anyway


class _Array:
    """Stands for a numpy array until its parts are checked."""

    def __init__(self, *_: object) -> None:
        self.parts: tuple[object, ...] = ()

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.parts = state

    @classmethod
    def from_buffer(cls, buffer: object, dtype: object, shape: object, order: object) -> _Array:
        """Stand for an array as pickle protocol 5 writes it."""
        array = cls()
        array.parts = (1, shape, dtype, order == "F", buffer)
        return array

    def array(self, path: Path) -> NDArray[Any]:
        """Return the numpy array; only plain integers are known."""
        match self.parts:
            case (
                _,
                tuple(shape),
                _Dtype(name="u1" | "uint8" | "i8" | "int64" as name),
                bool(fortran),
                content,
            ):
                content = content.encode("latin1") if isinstance(content, str) else content
                if isinstance(content, bytes | bytearray) and all(type(side) is int for side in shape):
                    flat = np.frombuffer(content, dtype="u1" if name in ("u1", "uint8") else "<i8")
                    if math.prod(shape) == flat.size and all(side >= 0 for side in shape):
                        return np.array(flat.reshape(shape, order="F" if fortran else "C"), order="C")
        raise UserError(f"The file {path} holds an array that is not plain bytes; get a fresh copy.")


class _NdarrayName:
    """Stands for ``numpy.ndarray``, which the files only name."""


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return codecs.encode(text, "latin1") if encoding == "latin1" else b""


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NdarrayName,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Array.from_buffer for core in ("core", "_core")},
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _Refused(f"{module}.{name}")
        return _ALLOWED[module, name]


class _Refused(Exception):
    """A pickle asked for something that data do not need."""


def load_plain_pickle(content: bytes, path: Path) -> object:
    """Return what a pickle of plain data holds; any other is refused, never executed."""
    try:
        return _PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
    except _Refused as error:
        raise UserError(
            f"The file {path} was refused: it asks to run {error}, which no data set needs; get a clean copy."
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(
            f"The file {path} is truncated or corrupt ({plain_error(error)}); get a fresh copy."
        ) from error
