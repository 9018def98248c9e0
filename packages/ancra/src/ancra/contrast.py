"""Asymmetric negative contrast: what it costs that a negative is predicted as the natural image is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["asymmetric_contrast", "similarity"]


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return ``S(q, r)`` ``(N,)`` of probabilities ``(N, K)``.

    ``sqrt(max q * max r)`` where both are largest at the same class, else 0.
    """
    top, chosen = first.max(dim=1)
    other_top, other_chosen = second.max(dim=1)
    return torch.where(chosen == other_chosen, (top * other_top).sqrt(), 0.0)


def asymmetric_contrast(natural_logits: Tensor, negative_logits: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Return ``alpha S(stop q, r) + (1 - alpha) S(q, stop r)`` of each pair ``(N,)`` (ANCRA, section 2.2).

    ``q`` and ``r`` are the probabilities of the natural image and of its negative. With ``alpha`` 1 the natural
    side is frozen: the negative gives way, and the natural image's class is not dragged along. (The published
    formula writes the second term's arguments the other way round; S is symmetric.)
    """
    natural, negative = F.softmax(natural_logits, dim=1), F.softmax(negative_logits, dim=1)
    if alpha == 1.0:  # no backward pass of zeros through the natural side
        return similarity(natural.detach(), negative)
    if alpha == 0.0:
        return similarity(natural, negative.detach())
    frozen_natural = similarity(natural.detach(), negative)
    frozen_negative = similarity(natural, negative.detach())
    return alpha * frozen_natural + (1.0 - alpha) * frozen_negative
