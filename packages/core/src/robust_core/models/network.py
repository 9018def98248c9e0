"""What every network of the core offers: pixels in [0, 1] to features, features to logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_core.errors import UserError

__all__ = ["Network", "Normalize", "PooledHead", "pooled_features"]


class PooledHead(NamedTuple):
    """A head that is (norm, relu,) average pooling and one linear layer, in this order.

    ``pool`` is the side of the pooling window and its stride; ``None`` means the whole map. The pooled map is
    flattened channel by channel, as ``(C, h, w)``.
    """

    norm: nn.Module | None
    relu: bool
    pool: int | None
    linear: nn.Linear

    def __call__(self, features: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` of features ``(N, C, h, w)``, which stay as they are."""
        return _pooled_logits(features, *self)


def _pooled(features: Tensor, norm: nn.Module | None, relu: bool, pool: int | None) -> Tensor:
    if norm is not None:
        features = norm(features)
    if relu:
        # The output of the norm is ours to overwrite, the features are not.
        features = F.relu(features, inplace=norm is not None)
    return features.mean(dim=(2, 3)) if pool is None else F.avg_pool2d(features, pool).flatten(1)


def _pooled_logits(
    features: Tensor, norm: nn.Module | None, relu: bool, pool: int | None, linear: nn.Linear
) -> Tensor:
    return cast(Tensor, linear(_pooled(features, norm, relu, pool)))


class _WithPooledHead(Protocol):
    """A network, or a view of one."""

    def forward_features(self, images: Tensor) -> Tensor: ...

    def pooled_head(self) -> PooledHead | None: ...


def pooled_features(network: _WithPooledHead, images: Tensor) -> Tensor:
    """Return what the last linear layer sees ``(N, D)`` of the images, with gradient.

    ``network`` is a network or a frozen view of one. Raises ``UserError`` if its head is not pooling and one
    linear layer.
    """
    head = network.pooled_head()
    if head is None:
        raise UserError("The network has no pooled features: its head is not pooling and one linear layer.")
    return _pooled(network.forward_features(images), head.norm, head.relu, head.pool)


class Normalize(nn.Module):
    """``(images - mean) / std`` per channel; its buffers stay out of the state dict."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return normalised images of the same shape."""
        return (images - self.mean) / self.std


class Network(nn.Module):
    """A classifier split where class activation maps and feature figures look at it.

    ``forward(images) = forward_head(forward_features(images))`` for images ``(N, 3, H, W)`` in ``[0, 1]``;
    normalisation, if any, is part of ``forward_features``.
    """

    # Names of the same tensors in other official state dicts: prefix there -> prefix here.
    aliases: ClassVar[Mapping[str, str]] = {}
    # Sub-modules that the state dict holds but the forward pass does not use.
    unused: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        name: str,
        num_classes: int,
        *,
        image_size: int = 32,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.num_classes = num_classes
        self.image_size = image_size
        self.normalize: nn.Module = nn.Identity() if mean is None or std is None else Normalize(mean, std)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)``."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the feature map ``(N, K, h, w)`` that class activation maps weigh."""
        raise NotImplementedError

    def forward_head(self, features: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` of a feature map."""
        head = self.pooled_head()
        if head is None:
            raise NotImplementedError
        # not head(features): the compiler of torch 2.10 cannot call a tuple that holds modules
        return _pooled_logits(features, *head)

    def conv_norm_pairs(self) -> list[tuple[str, str]]:
        """Return the names (convolution, batch norm) of each convolution that feeds a norm alone.

        Such a norm can be folded into the convolution in evaluation mode.
        """
        return []

    def pooled_head(self) -> PooledHead | None:
        """Return what ``forward_head`` consists of, or None if it is not pooling and linear."""
        return None
