"""How far the features of pairs of images are apart, which ANCRA's figures show.

Features are the pooled map before the classifier (``robust_core.models.pooled_features``).
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

__all__ = ["Distances", "Spread", "feature_distances", "spread_of"]


class Distances(NamedTuple):
    """Cosine similarity and Euclidean distance of each pair ``(N,)``."""

    cosine: Tensor
    l2: Tensor


class Spread(NamedTuple):
    """Largest, smallest, mean and (unbiased) variance."""

    max: float
    min: float
    mean: float
    var: float


def feature_distances(first: Tensor, second: Tensor) -> Distances:
    """Return the distances of the rows of two feature matrices ``(N, D)``."""
    return Distances(F.cosine_similarity(first, second, dim=1), (first - second).norm(dim=1))


def spread_of(values: Tensor) -> Spread:
    """Return the statistics that the published script prints of a vector ``(N,)``."""
    return Spread(
        float(values.max()), float(values.min()), float(values.mean()), float(values.var(unbiased=True))
    )
