"""CGD (Piratla et al., ICLR 2022): more weight on units whose descent direction also helps the others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gdro_at.weights.projection import normalised
from gdro_at.weights.rule import GroupRule, constants

__all__ = ["CgdWeights", "affinity", "cgd_weights"]

_SMALLEST_NORMS = 1e-3
_SMALLEST_WEIGHT = 1e-5


class CgdWeights(NamedTuple):
    """New ``weights`` ``(K,)``, the ``exponent`` ``(K,)`` that moved them, ``affinity`` A ``(K, K)``."""

    weights: Tensor
    exponent: Tensor
    affinity: Tensor


def affinity(losses: Tensor, gradients: Tensor) -> Tensor:
    """Return ``A_kj = sqrt(l_k l_j) G_k.G_j / max(|G_k||G_j|, 1e-3)`` ``(K, K)``; absent units give zeros.

    ``losses`` ``(K,)`` are unit means, ``gradients`` ``(K, P)`` theirs by the chosen parameters (of the published
    ResNets: ``layer3``, ``layer4`` and the head), both of the global batch and 0 for an absent unit.
    """
    products = gradients @ gradients.T
    squares = products.diagonal()
    norms = (squares[:, None] * squares[None, :]).sqrt().clamp(min=_SMALLEST_NORMS)
    roots = losses.clamp(min=0).sqrt()
    return roots[:, None] * roots[None, :] * (products / norms)


@torch.no_grad()
def cgd_weights(
    rule: GroupRule, weights: Tensor, losses: Tensor, gradients: Tensor, counts: Tensor
) -> CgdWeights:
    """Return ``q_k exp(eta sum_j A_kj v_j)``, normalised and raised to at least 1e-5.

    ``counts`` ``(K,)`` are the members of the global batch. Corrected (``fair_baselines``, section 3): normalised again
    after the floor, absent units keep their weight. ``cgd_form="published"`` (golden README, "CGD weights"): not
    normalised after the floor, so that the weights may sum to more than 1.
    """
    fixed = constants(rule, losses.dtype, losses.device)
    scaled = affinity(losses, gradients)
    exponent = rule.robust_step_size * (scaled @ fixed.prior)
    members = rule.movable(counts)
    exponent = exponent - torch.where(members, exponent, -torch.inf).amax(dim=0)
    changed = normalised(weights, exponent, members)
    floored = torch.where(members, changed.clamp(min=_SMALLEST_WEIGHT), changed)
    if rule.cgd_form == "corrected":
        floored = normalised(floored, torch.zeros_like(floored), members)
    return CgdWeights(floored, exponent, scaled)
