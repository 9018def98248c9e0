"""ResNet (He et al. 2016) with the 3x3 stem for small images, and the small net of the demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from robust_core.models.network import Network, PooledHead
from robust_core.models.pointwise import pointwise

__all__ = ["ResNet", "resnet", "small_resnet"]


def _shortcut(in_planes: int, planes: int, stride: int) -> nn.Sequential:
    """Return the identity (an empty sequence) or, for another shape, a 1x1 convolution with its norm."""
    if stride == 1 and in_planes == planes:
        return nn.Sequential()
    return nn.Sequential(pointwise(in_planes, planes, stride), nn.BatchNorm2d(planes))


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    expansion = 1
    pairs = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = _shortcut(in_planes, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, four times as many channels out."""

    expansion = 4
    pairs = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, self.expansion * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(self.expansion * planes)
        self.shortcut = _shortcut(in_planes, self.expansion * planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class ResNet(Network):
    """Stem, stages of residual blocks (all but the first halve the map), global average pooling, linear.

    ``forward_features`` returns the last stage's output, behind its relu.
    """

    aliases: ClassVar[Mapping[str, str]] = {"fc.": "linear."}

    def __init__(
        self,
        name: str,
        num_classes: int,
        *,
        block: type[_BasicBlock] | type[_Bottleneck],
        blocks: Sequence[int],
        width: int,
        stem_stride: int = 1,
        image_size: int = 32,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(name, num_classes, image_size=image_size, mean=mean, std=std)
        self.conv1 = nn.Conv2d(3, width, 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        self.stages = [f"layer{index + 1}" for index in range(len(blocks))]
        for index, (stage, count) in enumerate(zip(self.stages, blocks, strict=True)):
            planes = width * 2**index
            layers: list[nn.Module] = []
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                layers.append(block(channels, planes, stride))
                channels = planes * block.expansion
            self.add_module(stage, nn.Sequential(*layers))
        self.linear = nn.Linear(channels, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last stage's output ``(N, K, h, w)``, not negative; 4x4 at 32 pixels."""
        out = F.relu(self.bn1(self.conv1(self.normalize(images))), inplace=True)
        for stage in self.stages:
            out = self.get_submodule(stage)(out)
        return out

    def pooled_head(self) -> PooledHead:
        """Return the head: global average pooling and ``linear``."""
        return PooledHead(norm=None, relu=False, pool=None, linear=self.linear)

    def conv_norm_pairs(self) -> list[tuple[str, str]]:
        """Return all (convolution, batch norm) pairs; every norm follows a convolution here."""
        found = [("conv1", "bn1")]
        for stage in self.stages:
            for name, block in cast(nn.Sequential, self.get_submodule(stage)).named_children():
                prefix = f"{stage}.{name}"
                pairs = cast("_BasicBlock | _Bottleneck", block).pairs
                found += [(f"{prefix}.{conv}", f"{prefix}.{norm}") for conv, norm in pairs]
                if len(cast(nn.Sequential, block.shortcut)) > 0:
                    found.append((f"{prefix}.shortcut.0", f"{prefix}.shortcut.1"))
        return found


_DEPTHS: dict[int, tuple[type[_BasicBlock] | type[_Bottleneck], tuple[int, ...]]] = {
    18: (_BasicBlock, (2, 2, 2, 2)),
    34: (_BasicBlock, (3, 4, 6, 3)),
    50: (_Bottleneck, (3, 4, 6, 3)),
}


def resnet(
    name: str,
    num_classes: int,
    *,
    depth: int,
    width: int = 64,
    image_size: int = 32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ResNet:
    """Return ResNet-18, -34 or -50 whose first stage has ``width`` channels."""
    block, blocks = _DEPTHS[depth]
    return ResNet(
        name, num_classes, block=block, blocks=blocks, width=width, image_size=image_size, mean=mean, std=std
    )


def small_resnet(
    name: str,
    num_classes: int,
    *,
    depth: int,
    image_size: int = 32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ResNet:
    """Return the demos' nets: stride-2 stem, stages of 16, 32 and 64 channels.

    Each stage has one block; at depth 10 the last one has two.
    """
    return ResNet(
        name,
        num_classes,
        block=_BasicBlock,
        blocks=(1, 1, 1) if depth == 8 else (1, 1, 2),
        width=16,
        stem_stride=2,
        image_size=image_size,
        mean=mean,
        std=std,
    )
