"""The 1x1 convolution of a shortcut, kept off a fault of the library below torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SlicedConv2d", "pointwise"]

_BLOCK = 16


class SlicedConv2d(nn.Conv2d):
    """A strided 1x1 convolution that takes every second pixel first: equal, and of stride 1.

    oneDNN writes past its workspace where a strided 1x1 convolution of fewer than 16 channels, channels last,
    gets the gradient of its weights (its issue 6035): wrong gradients, or a crash at a later step.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of ``input`` ``(N, C, H, W)``."""
        rows, columns = (int(step) for step in self.stride)
        return F.conv2d(input[:, :, ::rows, ::columns], self.weight, self.bias)


def pointwise(in_planes: int, planes: int, stride: int) -> nn.Conv2d:
    """Return a 1x1 convolution without bias."""
    kind = SlicedConv2d if stride > 1 and in_planes < _BLOCK else nn.Conv2d
    return kind(in_planes, planes, 1, stride, bias=False)
