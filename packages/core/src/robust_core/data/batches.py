"""Batches from images in memory: shuffled, cropped and flipped a whole batch at once.

Order and augmentation are drawn for the global batch and sliced by rank, so that any number of processes sees
the same data.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from robust_core.data.types import Batch, ImageSet
from robust_core.errors import UserError
from robust_core.randomness import generator_for, slice_of_rank

__all__ = ["batches", "crop_and_flip", "epoch_order", "steps_per_epoch"]


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order of ``n`` images in an epoch: a permutation of 0..n-1, int64 ``(n,)``, on the CPU."""
    return torch.randperm(n, generator=generator_for(seed, "order", epoch))


def steps_per_epoch(n: int, batch_size: int, drop_last: bool = False) -> int:
    """Return the number of batches of ``batch_size`` (global) that ``n`` images make."""
    return n // batch_size if drop_last else -(-n // batch_size)


def crop_and_flip(
    images: Tensor, offsets: Tensor | None, flips: Tensor | None, padding: int, fill: float = 0
) -> Tensor:
    """Return each image cut, at its offset, from itself bordered by ``padding`` pixels of ``fill``, then mirrored.

    ``images`` ``(n, C, H, W)`` of any dtype (masks may follow their images); ``offsets`` int64 ``(n, 2)``: row and
    column, each 0..2*padding, or None; ``flips`` bool ``(n,)``: left to right, or None.
    """
    if offsets is None and flips is None:
        return images
    n, channels, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device).expand(n, height)
    columns = torch.arange(width, device=device).expand(n, width)
    if flips is not None:
        columns = torch.where(flips[:, None], width - 1 - columns, columns)
    if offsets is None:
        padding = 0
    else:
        rows = rows + offsets[:, :1]
        columns = columns + offsets[:, 1:]
    if padding:
        images = torch.nn.functional.pad(images, (padding,) * 4, value=fill)
    places = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    places = places.view(n, 1, -1).expand(n, channels, -1)
    return images.flatten(2).gather(2, places).view(n, channels, height, width)


def batches(
    dataset: ImageSet,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    augment: bool = True,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    drop_last: bool = False,
) -> Iterator[Batch]:
    """Yield this process's part of each global batch of an epoch, from step ``start`` on, on the images' device.

    ``batch_size`` is the global one; the parts of all ranks, one after the other, are the batch that one process
    would get, to the bit. ``augment`` crops and flips as ``dataset.info`` says.
    """
    if batch_size < world_size:
        raise UserError(
            f"A batch of {batch_size} images cannot be shared by {world_size} processes; expected at least one"
            " image for each: take a larger batch size or fewer processes."
        )
    if not 0 <= rank < world_size:
        raise UserError(
            f"Rank {rank} does not exist among {world_size} processes; expected 0 to {world_size - 1}."
        )
    order = epoch_order(len(dataset), seed, epoch)
    for step in range(start, steps_per_epoch(len(dataset), batch_size, drop_last)):
        chosen = order[step * batch_size : (step + 1) * batch_size]
        yield _batch(dataset, chosen, seed, epoch, step, augment, rank, world_size)


def _batch(
    dataset: ImageSet,
    chosen: Tensor,
    seed: int,
    epoch: int,
    step: int,
    augment: bool,
    rank: int,
    world_size: int,
) -> Batch:
    info = dataset.info
    padding = info.crop_padding if augment else 0
    device = dataset.images.device
    generator = generator_for(seed, "augment", epoch, step)
    offsets = flips = None
    if padding:
        offsets = torch.randint(0, 2 * padding + 1, (len(chosen), 2), generator=generator)
        offsets = slice_of_rank(offsets, rank, world_size).to(device, non_blocking=True)
    if augment and info.flip:
        flips = torch.rand(len(chosen), generator=generator) < 0.5
        flips = slice_of_rank(flips, rank, world_size).to(device, non_blocking=True)
    positions = slice_of_rank(chosen, rank, world_size).to(device, non_blocking=True)
    images = crop_and_flip(dataset.images[positions], offsets, flips, padding)
    return Batch(
        images=images.float().div_(255.0),
        labels=dataset.labels[positions],
        indices=positions,
        groups=None if dataset.groups is None else dataset.groups[positions],
        offsets=offsets,
        flips=flips,
        padding=padding,
        global_size=len(chosen),
    )
