"""Tiny data sets in the real layouts, and where the real images are."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from robust_core.data import ImageSet, dataset_info


def picture(value: int, size: int = 32, mode: str = "RGB") -> Image.Image:
    """A plain picture whose grey value tells it from the others."""
    return Image.new(mode, (size, size), value if mode == "L" else (value, value, value))


def encoded(value: int, kind: str = "PNG", size: int = 32, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    picture(value, size, mode).save(stream, kind)
    return stream.getvalue()


def write_folders(base: Path, counts: Mapping[str, int], split: str, suffix: str = ".png") -> None:
    """``base/split/<class>/<k>.png`` with grey value 10 * class + k."""
    for label, (name, count) in enumerate(counts.items()):
        folder = base / split / name
        folder.mkdir(parents=True)
        for k in range(count):
            kind = "PNG" if suffix == ".png" else "JPEG"
            (folder / f"{k}{suffix}").write_bytes(encoded(10 * label + k, kind))


def write_archive(path: Path, members: Iterable[tuple[str, bytes] | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:xz") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                entry = tarfile.TarInfo(member[0])
                entry.size = len(member[1])
                archive.addfile(entry, io.BytesIO(member[1]))
    return path


def cifar_batch(labels: list[int], key: str = "labels", protocol: int = 2) -> bytes:
    """A batch as the authors of CIFAR pack it; image i is filled with i."""
    data = np.repeat(np.arange(len(labels), dtype=np.uint8)[:, None], 3072, axis=1)
    return pickle.dumps({b"data": data, key.encode(): labels, b"batch_label": b"a batch"}, protocol)


def write_cifar10(base: Path, labels: list[int]) -> Path:
    folder = base / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number in range(1, 6):
        (folder / f"data_batch_{number}").write_bytes(cifar_batch(labels))
    (folder / "test_batch").write_bytes(cifar_batch(labels))
    return folder


def svhn_file(labels: list[int]) -> bytes:
    """A file as the authors of SVHN pack it; image i holds i at row 0, column 1, channel 2."""
    images = np.zeros((32, 32, 3, len(labels)), np.uint8)
    images[0, 1, 2] = np.arange(len(labels))
    stream = io.BytesIO()
    savemat(stream, {"X": images, "y": np.array(labels)[:, None]})
    return stream.getvalue()


def write_tiny_imagenet(base: Path, train: int = 2, val: int = 2) -> Path:
    """Three classes, listed out of order; grey value 10 * label + k (val: + 100); some are greyscale."""
    folder = base / "tiny-imagenet-200"
    names = ["n03", "n01", "n02"]
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(names) + "\n")
    lines = []
    for label, name in enumerate(sorted(names)):
        images = folder / "train" / name / "images"
        images.mkdir(parents=True)
        for k in range(train):
            mode = "L" if k == 0 else "RGB"
            (images / f"{name}_{k}.JPEG").write_bytes(encoded(10 * label + k, "JPEG", 64, mode))
        for k in range(val):
            file = f"val_{3 * k + label}.JPEG"
            lines.append(f"{file}\t{name}\t0\t0\t63\t63")
            (folder / "val" / "images" / file).write_bytes(encoded(100 + 10 * label + k, "JPEG", 64))
    (folder / "val" / "val_annotations.txt").write_text("\n".join(reversed(lines)) + "\n")
    return folder


def image_set(n: int, name: str = "cifar10", size: int = 32, labels: torch.Tensor | None = None) -> ImageSet:
    """Random images in memory with the labels 0, 1, ... in turn."""
    info = dataset_info(name)
    return ImageSet(
        info=info,
        split="train",
        images=torch.randint(
            0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n)
        ),
        labels=torch.arange(n) % info.num_classes if labels is None else labels,
        indices=torch.arange(n),
    )


def real_data() -> Path:
    """The folder of real images, or a skip with the reason."""
    named = os.environ.get("ROBUST_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[4].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real images in {folder}: set $ROBUST_DATA to a folder that holds cifar10, svhn, ...")
    return folder
