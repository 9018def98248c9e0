"""(h) An epoch from the decoded cache against decoding JPEGs: PIL, resize and crop in a DataLoader with two workers."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from benchmarks.speed.epochs import epoch_times
from benchmarks.speed.rows import Row
from benchmarks.speed.setting import Setting
from robust_core.data import DatasetInfo, ImageSet, batches, load_table
from robust_core.data.table import ImageTable
from robust_core.data.transforms import photo_pipeline

__all__ = ["compare", "jpeg_files", "jpeg_table"]

BATCH = 32
IMAGES, FEW_IMAGES = 500, 64
SIZE = 224
COMPARED = 32


class _JpegFiles(Dataset[Any]):
    """Files decoded and transformed one by one, as torchvision's ``ImageFolder`` does it."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        resized = round(SIZE * 256 / 224)
        self.transform = transforms.Compose(
            [transforms.Resize((resized, resized)), transforms.CenterCrop(SIZE), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[position]) as image:
            return self.transform(image.convert("RGB")), 0


def jpeg_files(dataset: ImageSet, scratch: Path, count: int) -> tuple[list[Path], str]:
    """Return ``count`` JPEGs at most and where they come from.

    Those of ``cub`` in ``$ROBUST_DATA`` (else ``../shared/data``); without them, drawn images enlarged and written to
    ``scratch``.
    """
    named = os.environ.get("ROBUST_DATA")
    base = Path(named) if named else Path(__file__).resolve().parents[2].parent / "shared" / "data"
    found = sorted((base / "cub").rglob("*.jpg"))
    if found:
        return found[:count], "Waterbirds JPEGs"
    paths = []
    for position, pixels in enumerate(dataset.images[:count].cpu().permute(0, 2, 3, 1).numpy()):
        paths.append(scratch / f"{position}.jpg")
        Image.fromarray(pixels).resize((300, 250), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths, "drawn images as JPEGs of 300x250 pixels"


def jpeg_table(paths: Sequence[Path]) -> ImageTable:
    """Return files as the training split of a table, all with the label 0."""
    zeros = torch.zeros(len(paths), dtype=torch.int64)
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return ImageTable(
        info=DatasetInfo("jpegs", "JPEGs", ("any",), SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        root=root,
        names=tuple(path.relative_to(root).as_posix() for path in paths),
        labels=zeros,
        groups=zeros,
        splits=zeros,
        source=root,
        rows=torch.arange(len(paths)),
    )


def compare(setting: Setting) -> list[Row]:
    """Return the row of one epoch each, both sides from the same files to images on the device."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        count = IMAGES if setting.least_rounds >= 3 else FEW_IMAGES  # fewer rounds: a quick try
        paths, source = jpeg_files(setting.dataset, scratch, count)
        begin = time.perf_counter()
        dataset = load_table(jpeg_table(paths), "train", photo_pipeline(SIZE), cache_dir=scratch / "decoded")
        built = time.perf_counter() - begin
        return [_row(setting, dataset.to(setting.device), _JpegFiles(paths), source, built)]


def _row(setting: Setting, dataset: ImageSet, files: _JpegFiles, source: str, built: float) -> Row:
    count = len(dataset)
    compared = min(COMPARED, count)
    decoded = torch.stack([files[position][0] for position in range(compared)]).to(setting.device)
    equal = float((dataset.pixels(slice(0, compared)) == decoded).float().mean())
    times = epoch_times(
        "h",
        setting,
        lambda: batches(dataset, batch_size=BATCH, seed=0, epoch=0, augment=False),
        files,
        batch_size=BATCH,
        told=f"{count} {source}; decoded once in {built:.1f} s",
    )
    rates = {side: count / statistics.median(seconds) for side, seconds in times._asdict().items()}
    return Row(
        part="h",
        ours="decoded once, mapped from disk",
        other="PIL in a DataLoader, 2 workers",
        our_times=times.ours,
        other_times=times.torchvision,
        target=10.0,
        equal=equal,
        needs_equal=True,
        note=f"{count} {source}; {rates['ours']:,.0f} / {rates['torchvision']:,.0f} images per second",
        details={"images_per_second": rates, "seconds_of_the_first_decoding": built},
    )
