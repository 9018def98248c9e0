"""Random resized crops of whole batches on their device: the ``--augment_data`` of grouped data sets.

The published code takes the crop from the original file and resizes it once, with antialiasing, in 8 bits. Here it is
taken from the stored image (the pipeline's output) and resampled without rounding: the decoded cache serves every
epoch. A part of the stored image is only ever made larger, so that antialiasing would have nothing to do.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["random_boxes", "resized_crops"]

AREA = (0.7, 1.0)
RATIO = (3 / 4, 4 / 3)
TRIES = 10


def random_boxes(
    count: int,
    height: int,
    width: int,
    generator: torch.Generator,
    *,
    area: tuple[float, float] = AREA,
    ratio: tuple[float, float] = RATIO,
) -> Tensor:
    """Return boxes int64 ``(count, 4)``: top, left, height, width, in pixels, on the generator's device.

    As torchvision's ``RandomResizedCrop`` draws them: a share of the area uniform in ``area``, an aspect ratio
    (width/height) log-uniform in ``ratio``, ten tries until the rounded box fits, its corner uniform; if none fits, the
    largest central box whose ratio lies in ``ratio``.
    """
    draws = torch.rand((2, count, TRIES), generator=generator, dtype=torch.float64, device=generator.device)
    corners = torch.rand((2, count), generator=generator, dtype=torch.float64, device=generator.device)
    areas = height * width * (area[0] + (area[1] - area[0]) * draws[0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratios = torch.exp(low + (high - low) * draws[1])
    widths = torch.sqrt(areas * ratios).round().long()
    heights = torch.sqrt(areas / ratios).round().long()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.int().argmax(dim=1, keepdim=True)  # the first of the largest
    box_height, box_width = heights.gather(1, first).squeeze(1), widths.gather(1, first).squeeze(1)
    free_rows, free_columns = height - box_height, width - box_width
    # min: the product can round up to the number of places
    top = torch.minimum((corners[0] * (free_rows + 1)).long(), free_rows)
    left = torch.minimum((corners[1] * (free_columns + 1)).long(), free_columns)
    boxes = torch.stack([top, left, box_height, box_width], dim=1)
    return torch.where(fits.any(dim=1, keepdim=True), boxes, boxes.new_tensor(_central(height, width, ratio)))


def _central(height: int, width: int, ratio: tuple[float, float]) -> list[int]:
    box_height, box_width = height, width
    if width / height < min(ratio):
        box_height = round(width / min(ratio))
    elif width / height > max(ratio):
        box_width = round(height * max(ratio))
    return [(height - box_height) // 2, (width - box_width) // 2, box_height, box_width]


def resized_crops(images: Tensor, boxes: Tensor, flips: Tensor | None = None) -> Tensor:
    """Return each image's box resized to the whole image, then mirrored; float32 in the units of ``images``.

    ``images`` ``(n, C, H, W)``, uint8 or float32; ``boxes`` int64 ``(n, 4)`` as of :func:`random_boxes`, inside of the
    image; ``flips`` bool ``(n,)``: left to right, or None. As ``interpolate(mode="bilinear", align_corners=False)`` of
    the cut box: centres of pixels at halves, the border of the box repeated. A box that is the whole image gives the
    image back to the bit.
    """
    count, channels, height, width = images.shape
    if count == 0:
        return images.float()
    top, left, box_height, box_width = boxes.unbind(1)
    above, below, down = _places(top, box_height, height)
    before, after, along = _places(left, box_width, width)
    if flips is not None:
        before, after, along = (
            torch.where(flips[:, None], values.flip(1), values) for values in (before, after, along)
        )
    # rows are taken by index_select, which copies them whole: the quick way on a CPU
    planes = torch.arange(count * channels, device=images.device).view(count, channels, 1) * height
    rows = images.reshape(count * channels * height, width)

    def taken(places: Tensor) -> Tensor:
        chosen = rows.index_select(0, (planes + places[:, None]).flatten())
        return chosen.view(count, channels, height, width).float()

    mixed = _mixed(taken(above), taken(below), down[:, None, :, None])
    shape = (count, channels, height, width)
    left_column = mixed.gather(3, before[:, None, None].expand(shape))
    right_column = mixed.gather(3, after[:, None, None].expand(shape))
    # never beyond the image's own range, not even by rounding
    low, high = (bound.float()[:, None, None, None] for bound in images.flatten(1).aminmax(dim=1))
    return _mixed(left_column, right_column, along[:, None, None]).clamp_(low, high)


def _mixed(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    return second.sub_(first).mul_(share).add_(first)


def _places(start: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return for ``size`` pixels along a side the two pixels between which each lies, and the share of the second."""
    # one division of whole numbers, so that a length of ``size`` gives whole numbers again
    halves = 2 * torch.arange(size, device=start.device) + 1
    within = (halves * length[:, None]).double() / (2 * size) - 0.5
    within = torch.minimum(within.clamp_min(0), (length[:, None] - 1).double())
    first = within.floor()
    share = (within - first).float()
    first = first.long()
    second = torch.minimum(first + 1, length[:, None] - 1)
    return start[:, None] + first, start[:, None] + second, share
