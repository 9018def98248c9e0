"""Batches from images in memory: shuffled, cropped and flipped a whole batch at once.

Order and augmentation are drawn for the global batch and sliced by rank, so that any number of
processes sees the same data.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from robust_core.data.augment import random_boxes, resized_crops
from robust_core.data.types import Batch, ImageSet
from robust_core.errors import UserError
from robust_core.randomness import generator_for, rows_of_rank

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
    """Return each image cropped at its offset out of a border of ``padding`` pixels, then mirrored.

    ``images`` ``(n, C, H, W)`` of any dtype, so that masks may follow their images; the border holds
    ``fill``. ``offsets`` int64 ``(n, 2)``: row and column, each 0..2*padding, or None; ``flips`` bool
    ``(n,)``: left to right, or None.
    """
    n, channels, height, width = images.shape
    if n == 0 or (offsets is None and flips is None):
        return images
    device = images.device
    if offsets is None:
        offsets, padding = torch.zeros((n, 2), dtype=torch.int64, device=device), 0
    row_length = width + 2 * padding
    plane = (height + 2 * padding) * row_length
    # mirrored copies stand behind the images: one index_select of rows then crops and flips, much
    # faster on a CPU than an index per pixel
    copies = 1 if flips is None else 2
    bordered = images.new_full((copies, n, channels, height + 2 * padding, row_length), fill)
    inner = bordered[..., padding : padding + height, padding : padding + width]
    inner[0] = images
    top, left = offsets.unbind(1)
    image = torch.arange(n, device=device)
    if flips is not None:
        inner[1] = images.flip(3)
        left = torch.where(flips, 2 * padding - left, left)
        image = image + n * flips
    starts = image * (channels * plane) + top * row_length + left
    starts = starts[:, None, None] + plane * torch.arange(channels, device=device)[:, None]
    starts = starts + row_length * torch.arange(height, device=device)
    rows = bordered.as_strided((bordered.numel() - width + 1, width), (1, 1))
    return rows.index_select(0, starts.flatten()).view(n, channels, height, width)


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
    order: Tensor | None = None,
) -> Iterator[Batch]:
    """Yield this process's part of each global batch of an epoch, on ``dataset.device``.

    The first batch is that of step ``start``. ``batch_size`` is the global one; the parts of all ranks,
    one after the other, are the batch that one process would get, to the bit (a last batch of fewer images
    than processes goes whole to each). ``augment`` crops and flips as ``dataset.info`` says. ``order`` int64: the
    positions of the epoch's images, instead of :func:`epoch_order`.
    """
    if batch_size < world_size:
        raise UserError(
            f"A batch of {batch_size} images cannot be shared by {world_size} processes; expected at"
            " least one image for each: take a larger batch size or fewer processes."
        )
    if not 0 <= rank < world_size:
        raise UserError(
            f"Rank {rank} does not exist among {world_size} processes; expected 0 to {world_size - 1}."
        )
    order = epoch_order(len(dataset), seed, epoch) if order is None else order
    for step in range(start, steps_per_epoch(len(order), batch_size, drop_last)):
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
    resized = augment and info.resized_crop
    padding = info.crop_padding if augment and not resized else 0
    device = dataset.device
    mine = slice(*rows_of_rank(len(chosen), rank, world_size))
    generator = generator_for(seed, "augment", epoch, step)
    offsets = flips = boxes = None
    if resized:
        height, width = dataset.images.shape[2:]
        boxes = random_boxes(len(chosen), height, width, generator, ratio=info.crop_ratio)
        boxes = boxes[mine].to(device, non_blocking=True)
    if padding:
        offsets = torch.randint(0, 2 * padding + 1, (len(chosen), 2), generator=generator)
        offsets = offsets[mine].to(device, non_blocking=True)
    if augment and info.flip:
        flips = torch.rand(len(chosen), generator=generator) < 0.5
        flips = flips[mine].to(device, non_blocking=True)
    positions = chosen[mine].to(device, non_blocking=True)
    rows = chosen[mine].to(dataset.images.device) if dataset.mapped else positions
    stored = dataset.images.index_select(0, rows).to(device, non_blocking=True)
    if boxes is None:
        images = crop_and_flip(stored, offsets, flips, padding).float()
    else:
        images = resized_crops(stored, boxes, flips)
    return Batch(
        images=images.div_(255.0),
        labels=dataset.labels[positions],
        indices=positions,
        groups=None if dataset.groups is None else dataset.groups[positions],
        offsets=offsets,
        flips=flips,
        padding=padding,
        global_size=len(chosen),
        boxes=boxes,
    )
