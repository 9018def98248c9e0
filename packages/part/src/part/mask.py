"""PART's mask: which pixels keep the full budget, from class activation maps, as pure batched functions.

A mask is boolean, True where a pixel keeps ``eps`` and False where it gets ``low_eps``. Two rules:
:func:`cam_mask`, the plain reading of the paper (Zhang et al. 2024), the same for all channels, and
:func:`jet_mask`, what the official code does, per channel of a jet-coloured picture of the map.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from part.colormap import jet_index, jet_lut_with_nan
from part.resize import Size, check_maps, height_and_width, resize
from robust_core.errors import UserError

__all__ = [
    "MASK_RULES",
    "budget",
    "cam_mask",
    "check_budget",
    "density",
    "jet_mask",
    "jet_scores",
    "jet_weights",
    "make_mask",
    "mask_scores",
    "z_scores",
]

MASK_RULES = ("cam", "jet")
# A map whose values differ by less than this, relative to the largest, is constant up to rounding.
_CONSTANT = 1e-6


def z_scores(heatmaps: Tensor, size: Size) -> Tensor:
    """Return heat maps ``(N, h, w)``, resized and standardised over each image's pixels: ``(N, 1, H, W)``.

    ``(V - mean V) / std V`` with the population standard deviation, float32: a map and any rescaling of it
    give the same. Constant maps (all zeros included) and maps with NaN give zeros.
    """
    resized = resize(heatmaps, size)
    height, width = height_and_width(size)
    flat = resized.double().flatten(1)
    std, mean = torch.std_mean(flat, dim=1, correction=0, keepdim=True)
    scores = torch.where(_varies(heatmaps), (flat - mean) / std, 0.0)
    return scores.float().view(-1, 1, height, width)


def cam_mask(heatmaps: Tensor, size: Size) -> Tensor:
    """Return the mask of the paper's rule, bool ``(N, 1, H, W)``, from heat maps ``(N, h, w)``.

    True where the resized map lies more than one standard deviation above its mean over the image. A constant
    map, or one with NaN, is False everywhere. On real maps about a fifth of the pixels are True.
    """
    return z_scores(heatmaps, size) > 1.0


def _jet_levels(heatmaps: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Return colour indices ``(N, 1, H * W)`` and each colour's standardised value, float64 ``(N, 3, 257)``.

    The values of an image are standardised over its pixels and channels. All that follows looks values up, so
    that no coloured picture is ever made.
    """
    index = jet_index(resize(heatmaps, size).square()).flatten(1)
    lut = jet_lut_with_nan(index.device)
    values = lut.shape[1] * index.shape[1]
    moments = (lut.sum(dim=1), lut.square().sum(dim=1))
    mean, square = (m.index_select(0, index.flatten()).view(index.shape).sum(dim=1) / values for m in moments)
    std = (square - mean.square()).clamp(min=0.0).sqrt()
    return index[:, None], (lut.T[None] - mean[:, None, None]) / std[:, None, None]


def _look_up(levels: Tensor, index: Tensor, size: Size) -> Tensor:
    """Return ``levels`` (N, 3, 257) at the colour indices, ``(N, 3, H, W)``."""
    height, width = height_and_width(size)
    return levels.gather(2, index.expand(-1, 3, -1)).view(-1, 3, height, width)


def jet_mask(heatmaps: Tensor, size: Size) -> Tensor:
    """Return the mask of the official code, bool ``(N, 3, H, W)``, from heat maps ``(N, h, w)`` in [0, 1].

    The resized map is squared, coloured by jet and standardised over pixels and channels; True where that
    exceeds 1 in float32. The three channels of a pixel differ: they follow the red, green and blue of the
    colour. A map of NaN is False everywhere; a constant map is not (jet's red, green and blue differ).
    """
    index, levels = _jet_levels(heatmaps, size)
    return _look_up(levels.float() > 1.0, index, size)


def jet_scores(heatmaps: Tensor, size: Size) -> Tensor:
    """Return what :func:`jet_mask` compares with 1, float32 ``(N, 3, H, W)``; maps of NaN give zeros."""
    index, levels = _jet_levels(heatmaps, size)
    return _look_up(levels.float().nan_to_num(nan=0.0), index, size)


def jet_weights(heatmaps: Tensor, size: Size) -> Tensor:
    """Return the official weight matrix, float32 ``(N, 3, H, W)``: :func:`jet_scores`, at least 1.

    Where no score of an image exceeds 1, its largest score takes the place of 1; NaN maps give NaN.
    """
    index, levels = _jet_levels(heatmaps, size)
    scores = _look_up(levels, index, size)
    return scores.clamp(min=1.0).minimum(scores.amax(dim=(1, 2, 3), keepdim=True)).float()


def mask_scores(heatmaps: Tensor, size: Size, rule: str) -> Tensor:
    """Return what the rule ``"cam"`` or ``"jet"`` compares with 1: :func:`z_scores` or :func:`jet_scores`.

    As in :func:`make_mask`, a constant map gives zeros under both rules.
    """
    _check_rule(rule)
    return z_scores(heatmaps, size) if rule == "cam" else jet_scores(_as_published(heatmaps), size)


def make_mask(heatmaps: Tensor, size: Size, rule: str) -> Tensor:
    """Return the mask of the rule ``"cam"`` (one channel) or ``"jet"`` (three), bool ``(N, C, H, W)``.

    ``heatmaps`` ``(N, h, w)`` are :func:`robust_core.cam.normalize_map`'s, in [0, 1]. A constant map is False
    everywhere under both rules: the published normalisation makes it NaN, ours zeros.
    """
    _check_rule(rule)
    return cam_mask(heatmaps, size) if rule == "cam" else jet_mask(_as_published(heatmaps), size)


def _varies(heatmaps: Tensor) -> Tensor:
    """Return bool ``(N, 1)``: whether a map is more than a constant up to rounding (NaN is not)."""
    low, high = heatmaps.flatten(1).aminmax(dim=1, keepdim=True)
    return (high - low) > _CONSTANT * torch.maximum(high.abs(), low.abs())


def _as_published(heatmaps: Tensor) -> Tensor:
    """Return the maps with NaN for constant ones, which is what the published normalisation makes of them."""
    check_maps(heatmaps)
    return torch.where(_varies(heatmaps)[:, :, None], heatmaps, torch.nan)


def _check_rule(rule: str) -> None:
    if rule not in MASK_RULES:
        raise UserError(f"Unknown mask rule '{rule}'; expected one of {', '.join(MASK_RULES)}.")


def check_budget(eps: float, low_eps: float) -> None:
    """Raise :class:`UserError` unless ``0 <= low_eps <= eps`` (NaN and infinity are refused too)."""
    for name, value in (("epsilon", eps), ("low-epsilon", low_eps)):
        given: Any = value
        number = isinstance(given, numbers.Real) and not isinstance(given, bool)
        if not number or not math.isfinite(value) or value < 0.0:
            shown = value if number else repr(given)
            raise UserError(f"{name} is {shown}; expected a finite number of at least 0, for example 8/255.")
    if low_eps > eps:
        raise UserError(
            f"low-epsilon {low_eps:g} is larger than epsilon {eps:g}; "
            "the reduced budget must not exceed the full one: lower --low-epsilon or raise --epsilon."
        )


def budget(mask: Tensor, *, eps: float, low_eps: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the budget of each pixel, in pixels' units: ``eps`` where the mask is True, else ``low_eps``.

    The shape is the mask's, so a one-channel mask gives a budget that broadcasts over the image's channels.
    Raises :class:`UserError` unless ``0 <= low_eps <= eps`` and the mask is boolean.
    """
    given: Any = mask
    if not isinstance(given, Tensor) or given.dtype != torch.bool:
        found = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise UserError(
            f"The mask is {found}, expected a tensor of torch.bool: use mask > 0.5 or mask.bool()."
        )
    check_budget(eps, low_eps)
    full = torch.full((), eps, dtype=dtype, device=mask.device)
    reduced = torch.full((), low_eps, dtype=dtype, device=mask.device)
    return torch.where(mask, full, reduced)


def density(mask: Tensor) -> Tensor:
    """Return the fraction of each image's entries that keep the full budget, float32 ``(N,)``."""
    return mask.flatten(1).float().mean(dim=1)
