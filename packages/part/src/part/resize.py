"""Bicubic resizing of small maps as one matrix product per axis, on the device of the map."""

from __future__ import annotations

import numbers
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from robust_core.errors import UserError

__all__ = ["Size", "check_maps", "height_and_width", "resize", "resize_matrix"]

Size = int | tuple[int, int]
_A = -0.5  # the coefficient of the cubic convolution


def _cubic(distance: Tensor) -> Tensor:
    """Return the cubic convolution kernel with coefficient -0.5 (Keys 1981) at absolute distances."""
    near = ((_A + 2.0) * distance - (_A + 3.0)) * distance * distance + 1.0
    far = (((distance - 5.0) * distance + 8.0) * distance - 4.0) * _A
    return torch.where(distance < 1.0, near, torch.where(distance < 2.0, far, 0.0))


@lru_cache(maxsize=64)
def _cached_matrix(source: int, target: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a cached inference tensor would be unusable outside
        scale = source / target
        stretch = max(scale, 1.0)  # shrinking widens the kernel, so that no pixel is skipped
        centres = (torch.arange(target, dtype=torch.float64) + 0.5) * scale
        places = torch.arange(source, dtype=torch.float64) + 0.5
        weights = _cubic((places[None, :] - centres[:, None]).abs() / stretch)
        weights = weights / weights.sum(dim=1, keepdim=True)
        return weights.to(device=device, dtype=dtype)


def resize_matrix(
    source: int, target: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the matrix ``(target, source)`` that resizes one axis bicubically.

    Cubic convolution with coefficient -0.5, half-pixel centres, weights cut off at the border and brought
    back to sum one; where the axis shrinks, the kernel widens with it. Computed in float64, rounded to
    ``dtype``. Cached per device: do not write to it.
    """
    if source < 1 or target < 1:
        raise UserError(f"Cannot resize an axis of {source} to {target}; both lengths must be at least 1.")
    return _cached_matrix(source, target, dtype, torch.device(device))


def height_and_width(size: Size) -> tuple[int, int]:
    """Return ``(H, W)`` of a size that may be one number for both; ``UserError`` for anything else.

    >>> height_and_width(32)
    (32, 32)
    """
    given: Any = size
    pair = tuple(given) if isinstance(given, tuple | list) else (given, given)
    if len(pair) != 2 or not all(_is_length(side) for side in pair):
        raise UserError(
            f"size is {size!r}, expected a whole number or (H, W), each at least 1: give e.g. 32."
        )
    return int(pair[0]), int(pair[1])


def _is_length(side: Any) -> bool:
    return not isinstance(side, bool) and isinstance(side, numbers.Integral) and int(side) >= 1


def check_maps(maps: Tensor) -> None:
    """Refuse what is not a batch of maps ``(N, h, w)`` (``UserError``)."""
    given: Any = maps
    if not isinstance(given, Tensor):
        raise UserError(
            f"The maps are {type(given).__name__}, expected a tensor (N, h, w): use torch.from_numpy(maps)."
        )
    if maps.dim() != 3:
        remedy = "give one map as maps[None]" if maps.dim() == 2 else "leave out a channel axis (maps[:, 0])"
        raise UserError(f"The maps have shape {tuple(maps.shape)}, expected (N, h, w): {remedy}.")
    if maps.is_complex():
        raise UserError(f"The maps are {maps.dtype}, expected real numbers: use maps.abs() or maps.real.")


def resize(maps: Tensor, size: Size) -> Tensor:
    """Return maps ``(N, h, w)`` resized bicubically to float32 ``(N, H, W)``; nothing is clipped.

    Step 1 of the published mask pipeline, ``R V R^T``: the width first, the intermediate and the result
    rounded to float32. The products are summed in float64, as in the published pipeline, so that no setting
    of the matrix product (TF32) moves a threshold. Raises :class:`UserError` for other shapes and sizes.
    """
    check_maps(maps)
    height, width = height_and_width(size)
    across = resize_matrix(maps.shape[2], width, torch.float64, maps.device)
    down = resize_matrix(maps.shape[1], height, torch.float64, maps.device)
    wide = (maps.float().double() @ across.T).float()
    return (down @ wide.double()).float()
