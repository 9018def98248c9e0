"""Controls that the paper lacks: masks that cost as much as PART's and spend as much, but elsewhere.

Each takes the mask that PART would use. Where a control trains as well as PART, it is not the class
activation map that helps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from part.mask import check_budget, density
from robust_core.errors import UserError, unknown_name

__all__ = [
    "MASK_CONTROLS",
    "controlled_mask",
    "inverted",
    "random_places",
    "shifted",
    "uniform_budget",
]

MASK_CONTROLS = ("none", "random", "shifted", "inverted", "uniform")


def _lowest(values: Tensor, mask: Tensor) -> Tensor:
    """Return as many True per image and channel as ``mask`` has, at the lowest values; first pixels first."""
    if values.shape != mask.shape:
        raise UserError(f"Values have shape {tuple(values.shape)}; expected the mask's, {tuple(mask.shape)}.")
    order = values.flatten(2).argsort(dim=2, stable=True)
    counts = mask.flatten(2).sum(dim=2, keepdim=True)
    chosen = torch.arange(order.shape[2], device=order.device) < counts
    return torch.zeros_like(chosen).scatter_(2, order, chosen).view_as(mask)


def random_places(mask: Tensor, draw: Tensor) -> Tensor:
    """Return masks that keep each image's (and channel's) number of full pixels, at uniformly drawn places.

    ``draw`` holds independent random numbers of one continuous distribution, in the mask's shape.
    """
    return _lowest(draw, mask)


def shifted(mask: Tensor) -> Tensor:
    """Return each mask rolled by half the image in both directions: same density, same smoothness."""
    return mask.roll((mask.shape[2] // 2, mask.shape[3] // 2), dims=(2, 3))


def inverted(mask: Tensor, scores: Tensor) -> Tensor:
    """Return masks with each image's (and channel's) number of full pixels where the scores are lowest.

    ``scores`` has the mask's shape: :func:`part.mask.mask_scores` of the same rule.
    """
    return _lowest(scores, mask)


def controlled_mask(mask: Tensor, scores: Tensor, control: str, *, draw: Tensor | None = None) -> Tensor:
    """Return the mask ``(N, C, H, W)`` under a control, one of :data:`MASK_CONTROLS`.

    ``"none"`` and ``"uniform"`` give the mask back: the latter acts on the budget (:func:`uniform_budget`).
    ``"random"`` needs ``draw``, uniform numbers of the mask's shape. Only ``"inverted"`` reads ``scores``.
    Three-channel masks (rule ``jet``) are controlled channel by channel.
    """
    if control not in MASK_CONTROLS:
        raise unknown_name("mask control", control, MASK_CONTROLS)
    if control == "random":
        if draw is None:
            raise UserError("The mask control 'random' needs places: give it a draw of the mask's shape.")
        return random_places(mask, draw)
    if control == "shifted":
        return shifted(mask)
    return inverted(mask, scores) if control == "inverted" else mask


def uniform_budget(mask: Tensor, *, eps: float, low_eps: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the mean of each image's own budget, ``(N, 1, 1, 1)``: ``low_eps + (eps - low_eps) density``.

    Raises :class:`UserError` unless ``0 <= low_eps <= eps``.
    """
    check_budget(eps, low_eps)
    mean = low_eps + (eps - low_eps) * density(mask).double()
    return mean.to(dtype)[:, None, None, None]
