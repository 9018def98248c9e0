"""PreActResNet-18 (He et al. 2016, identity mappings) with a final norm and 4x4 pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from robust_core.models.network import Network, PooledHead
from robust_core.models.pointwise import pointwise

__all__ = ["PreActBlock", "PreActResNet"]

_POOL = 4


class PreActBlock(nn.Module):
    """Norm and relu before each convolution; a changed shape takes its shortcut behind the first relu."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(pointwise(in_planes, planes, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's sum, before any norm."""
        out = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv2(F.relu(self.bn2(self.conv1(out)), inplace=True))
        out += shortcut
        return cast(Tensor, out)


class PreActResNet(Network):
    """Stem, four stages of two pre-activation blocks, norm, relu, 4x4 average pooling, linear.

    The linear layer sees ``image_size / 32`` squared places: 512 inputs at 32 pixels, 2048 at 64 (width 64).
    ``forward_features`` returns the last stage's output before the final norm.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        *,
        width: int = 64,
        image_size: int = 32,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(name, num_classes, image_size=image_size, mean=mean, std=std)
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.layer1 = self._stage(width, width, 1)
        self.layer2 = self._stage(width, 2 * width, 2)
        self.layer3 = self._stage(2 * width, 4 * width, 2)
        self.layer4 = self._stage(4 * width, 8 * width, 2)
        self.bn = nn.BatchNorm2d(8 * width)
        self.linear = nn.Linear(8 * width * (image_size // 8 // _POOL) ** 2, num_classes)

    @staticmethod
    def _stage(in_planes: int, planes: int, stride: int) -> nn.Sequential:
        return nn.Sequential(PreActBlock(in_planes, planes, stride), PreActBlock(planes, planes, 1))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last stage's output ``(N, K, h, w)`` before the final norm; 4x4 at 32 pixels."""
        out = self.layer2(self.layer1(self.conv1(self.normalize(images))))
        return cast(Tensor, self.layer4(self.layer3(out)))

    def pooled_head(self) -> PooledHead:
        """Return the head: ``bn``, relu, 4x4 average pooling and ``linear``."""
        return PooledHead(norm=self.bn, relu=True, pool=_POOL, linear=self.linear)

    def conv_norm_pairs(self) -> list[tuple[str, str]]:
        """Return each block's first convolution and second norm; the other norms follow additions."""
        stages = ("layer1", "layer2", "layer3", "layer4")
        return [(f"{stage}.{i}.conv1", f"{stage}.{i}.bn2") for stage in stages for i in range(2)]
