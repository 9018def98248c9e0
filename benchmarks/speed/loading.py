"""(d) Loading and augmentation against a torchvision DataLoader: two workers, PIL crop, flip, ToTensor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from benchmarks.speed.epochs import epoch_times
from benchmarks.speed.rows import Row
from benchmarks.speed.setting import Setting
from robust_core.data import Batch, ImageSet, batches

__all__ = ["compare"]

BATCH = 128


class _PilImages(Dataset[Any]):
    """Images in memory as torchvision's CIFAR-10 holds them, transformed one by one."""

    def __init__(self, dataset: ImageSet) -> None:
        self.pixels = dataset.images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = dataset.labels.tolist()
        size = self.pixels.shape[1]
        crop, flip = transforms.RandomCrop(size, padding=4), transforms.RandomHorizontalFlip()
        self.transform = transforms.Compose([crop, flip, transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[position])), self.labels[position]


def _rebuilt(batch: Batch, dataset: ImageSet) -> Tensor:
    """Return the images of our batch, made again by PIL from what the batch says was done to each."""
    assert batch.offsets is not None
    assert batch.flips is not None
    size, made = dataset.images.shape[-1], []
    for position, (top, left), flip in zip(
        batch.indices.tolist(), batch.offsets.tolist(), batch.flips.tolist(), strict=True
    ):
        image = Image.fromarray(dataset.images[position].cpu().permute(1, 2, 0).numpy())
        bordered = ImageOps.expand(image, border=batch.padding)
        cut = bordered.crop((left, top, left + size, top + size))
        made.append(transforms.functional.to_tensor(ImageOps.mirror(cut) if flip else cut))
    return torch.stack(made).to(batch.images.device)


def _ours(dataset: ImageSet) -> Iterable[Batch]:
    return batches(dataset, batch_size=BATCH, seed=0, epoch=0)


def compare(setting: Setting) -> list[Row]:
    """Return the row of one epoch each."""
    dataset = setting.dataset
    first = next(iter(_ours(dataset)))
    equal = float((first.images == _rebuilt(first, dataset)).float().mean())
    times = epoch_times(
        "d",
        setting,
        lambda: _ours(dataset),
        _PilImages(dataset),
        batch_size=BATCH,
        told=f"{len(dataset)} images each",
    )
    return [
        Row(
            part="d",
            ours="uint8 in memory",
            other="torchvision DataLoader, 2 workers",
            our_times=times.ours,
            other_times=times.torchvision,
            target=10.0,
            equal=equal,
            needs_equal=True,
            note=f"{len(dataset)} images",
        )
    ]
