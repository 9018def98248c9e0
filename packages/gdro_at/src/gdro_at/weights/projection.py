"""Moving weights on the simplex: multiply and normalise, or project on bounds; without a loop, without a sync."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["kl_projection", "moved", "normalised"]


def kl_projection(
    log_weights: Tensor,
    lower: float,
    upper: float,
    members: Tensor | None = None,
    total: Tensor | float = 1.0,
) -> Tensor:
    """Return the point of ``{sum q = total, lower <= q_k <= upper}`` nearest to the weights ``w`` in KL(q || w).

    That is ``q_k = clip(s w_k, lower, upper)`` (``fair_baselines``, section 2); the scale s is found exactly, by
    sorting the 2K values of s at which an entry meets a bound. ``log_weights`` ``(K,)`` are finite logarithms of
    unnormalised weights. Where ``members`` (bool ``(K,)``) is given, only those take part and the others are 0. The
    bounds must admit the total (0 or more below, members x upper or less above), else every member is at a bound.
    """
    members = torch.ones_like(log_weights, dtype=torch.bool) if members is None else members
    lower = max(lower, 0.0)
    log_lower = math.log(lower) if lower > 0 else -math.inf
    log_upper = math.log(upper)
    reaches_lower = torch.where(members, log_lower - log_weights, math.inf)
    reaches_upper = torch.where(members, log_upper - log_weights, math.inf)
    scales = torch.cat([reaches_lower, reaches_upper]).sort().values
    sums = torch.where(members, (scales[:, None] + log_weights).clamp(log_lower, log_upper).exp(), 0).sum(
        dim=1
    )
    # The sum grows with the scale: s lies above the last scale that gives too little, up to the next one.
    last = ((sums < total).sum() - 1).clamp(min=0)
    scale = scales.gather(0, last[None])
    at_upper = members & (reaches_upper <= scale)
    at_lower = members & (reaches_lower > scale) & ~at_upper
    free = members & ~at_upper & ~at_lower
    dtype = log_weights.dtype
    rest = total - lower * at_lower.sum(dtype=dtype) - upper * at_upper.sum(dtype=dtype)
    tiny = torch.finfo(dtype).tiny
    log_free = torch.where(free, log_weights, -math.inf)
    share = rest.clamp(min=tiny) * torch.softmax(log_free, dim=0)
    inner = torch.where(free, share.clamp(lower, upper), 0)
    return torch.where(at_upper, upper, torch.where(at_lower, lower, inner))


def _rest(weights: Tensor, members: Tensor) -> Tensor:
    """Return what the others leave to the members, ``(1,)``."""
    return 1 - torch.where(members, 0, weights).sum(dim=0, keepdim=True)


def normalised(weights: Tensor, exponent: Tensor, members: Tensor) -> Tensor:
    """Return ``w_k exp(e_k)``, scaled so that the members have what the others leave of 1; the others are kept.

    The largest exponent is subtracted first, so nothing overflows; a weight never becomes 0 for good.
    """
    exponent = exponent - torch.where(members, exponent, -math.inf).amax(dim=0, keepdim=True)
    raised = (weights * exponent.exp()).clamp(min=torch.finfo(weights.dtype).tiny)
    total = torch.where(members, raised, 0).sum(dim=0, keepdim=True)
    return torch.where(members, raised / total * _rest(weights, members), weights)


def moved(
    weights: Tensor,
    before: Tensor,
    last: Tensor,
    members: Tensor,
    bounds: tuple[float, float] | None,
    bound: str,
) -> Tensor:
    """Return the weights ``(K,)`` of the members times ``exp(before + last)``, bounded and normalised.

    ``bound`` is ``projection``, or ``clip``: clipped between the two multiplications, as published, where neither the
    weights were normalised since the start of the step nor the bounds hold at its end.
    """
    if bounds is None:
        return normalised(weights, before + last, members)
    if bound == "clip":
        lower, upper = bounds
        clipped = (weights * before.exp()).clamp(max=upper).clamp(min=lower)
        return normalised(torch.where(members, clipped, weights), last, members)
    log_weights = weights.clamp(min=torch.finfo(weights.dtype).tiny).log() + before + last
    projected = kl_projection(log_weights, *bounds, members=members, total=_rest(weights, members))
    return torch.where(members, projected, weights)
