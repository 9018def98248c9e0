"""The features that ANCRA's figures show: the pooled map before the classifier, and how far pairs are apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_core.errors import UserError
from robust_core.models import Network

__all__ = ["Distances", "Spread", "feature_distances", "pooled_features", "spread_of"]


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


def pooled_features(network: Network, images: Tensor) -> Tensor:
    """Return what the classifier sees ``(N, D)``: the pooled map, weighted where the network has attention.

    No gradient; the network's mode decides about its batch norms. Raises ``UserError`` for a network whose
    head is not pooling and one linear layer.
    """
    head = network.pooled_head()
    if head is None:
        raise UserError(
            f"{network.name} has no pooled features: its head is not pooling and one linear layer."
        )
    with torch.no_grad():
        features = network.forward_features(images)
        if head.norm is not None:
            features = head.norm(features)
        if head.relu:
            features = F.relu(features)
        if head.pool is None:
            return features.mean(dim=(2, 3))
        return F.avg_pool2d(features, head.pool).flatten(1)


def feature_distances(first: Tensor, second: Tensor) -> Distances:
    """Return the distances of the rows of two feature matrices ``(N, D)``."""
    return Distances(F.cosine_similarity(first, second, dim=1), (first - second).norm(dim=1))


def spread_of(values: Tensor) -> Spread:
    """Return the statistics that the published script prints of a vector ``(N,)``."""
    return Spread(
        float(values.max()), float(values.min()), float(values.mean()), float(values.var(unbiased=True))
    )
