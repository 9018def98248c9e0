"""The greedy rule (``--btl``): all weight on the worst share of the data, by groups."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["greedy_weights"]


def greedy_weights(
    reference: Tensor, fractions: Tensor, *, alpha: float, minimum_variational_weight: float = 0.0
) -> Tensor:
    """Return weights ``(K,)`` that put ``fractions / alpha`` on the units of largest ``reference``.

    In descending order of ``reference`` ``(K,)`` units are kept as long as their ``fractions`` ``(K,)`` (sum 1) add up
    to at most ``alpha``; the next one takes what is missing to 1, the others get nothing. The result w becomes
    ``rho fractions + (1 - rho) w``, rho the minimum variational weight. ``alpha >= 1`` keeps all: the weights are the
    fractions (the official code fails with an index error there). Golden README, part 1, "Greedy rule".
    """
    alpha = min(alpha, 1.0)
    order = torch.argsort(reference, descending=True, stable=True)
    ordered = fractions[order]
    kept = ordered.cumsum(dim=0) <= alpha
    weights = torch.where(kept, ordered / alpha, 0)
    # kept is a prefix; no position matches where it holds everything
    next_one = torch.arange(len(ordered), device=kept.device) == kept.sum()
    weights = torch.where(next_one, 1 - weights.sum(), weights)
    rho = minimum_variational_weight
    weights = rho * ordered + (1 - rho) * weights
    return torch.empty_like(weights).scatter(0, order, weights)
