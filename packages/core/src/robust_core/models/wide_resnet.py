"""WideResNet depth-width (Zagoruyko and Komodakis 2016), e.g. WRN-34-10, for small images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from robust_core.errors import UserError
from robust_core.models.network import Network, PooledHead
from robust_core.models.pointwise import pointwise

__all__ = ["WideResNet"]


class _WideBlock(nn.Module):
    """Norm and relu before each convolution; a changed width takes its shortcut behind the first relu."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        # The official name, for the state dict; absent where the width stays.
        self.convShortcut: nn.Module | None = None
        if in_planes != planes:
            self.convShortcut = pointwise(in_planes, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        out = self.conv2(F.relu(self.bn2(self.conv1(out)), inplace=True))
        out += shortcut
        return cast(Tensor, out)


class _Stage(nn.Module):
    """A stage's blocks, under the official name ``layer``."""

    def __init__(self, count: int, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        first = _WideBlock(in_planes, planes, stride)
        self.layer = nn.Sequential(first, *(_WideBlock(planes, planes, 1) for _ in range(count - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layer(x))


class WideResNet(Network):
    """Stem of 16 channels, three stages of ``(depth - 4) / 6`` blocks, norm, relu, global average, linear.

    ``forward_features`` returns ``block3``'s output before the final norm. ``sub_block1`` exists because
    official checkpoints hold it; nothing uses it, so its parameters ask for no gradient (otherwise several
    processes would wait for gradients that never come).
    """

    unused: ClassVar[tuple[str, ...]] = ("sub_block1",)

    def __init__(
        self,
        name: str,
        num_classes: int,
        *,
        depth: int,
        width: int,
        image_size: int = 32,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if depth < 10 or (depth - 4) % 6 or width < 1:
            raise UserError(
                f"{name} is no WideResNet: the depth must be 6n + 4 (10, 16, 22, 28, 34, ...) and the width "
                f"factor at least 1; use for example wrn-28-10 or wrn-34-10."
            )
        super().__init__(name, num_classes, image_size=image_size, mean=mean, std=std)
        self.blocks_per_stage = (depth - 4) // 6
        widths = (16, 16 * width, 32 * width, 64 * width)
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.block1 = _Stage(self.blocks_per_stage, widths[0], widths[1], 1)
        self.sub_block1 = _Stage(self.blocks_per_stage, widths[0], widths[1], 1)
        self.block2 = _Stage(self.blocks_per_stage, widths[1], widths[2], 2)
        self.block3 = _Stage(self.blocks_per_stage, widths[2], widths[3], 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        self._initialise()
        self.sub_block1.requires_grad_(False)

    def _initialise(self) -> None:
        """Draw convolutions from N(0, 2 / (k k out)), as He et al. 2015; zero the classifier's bias."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return ``block3``'s output ``(N, K, h, w)`` before the final norm; 8x8 at 32 pixels."""
        out = self.block1(self.conv1(self.normalize(images)))
        return cast(Tensor, self.block3(self.block2(out)))

    def pooled_head(self) -> PooledHead:
        """Return the head: ``bn1``, relu, global average pooling and ``fc``."""
        return PooledHead(norm=self.bn1, relu=True, pool=None, linear=self.fc)

    def conv_norm_pairs(self) -> list[tuple[str, str]]:
        """Return each block's first convolution and second norm, and the stem where a norm alone follows."""
        pairs = [
            (f"{stage}.layer.{i}.conv1", f"{stage}.layer.{i}.bn2")
            for stage in ("block1", "block2", "block3")
            for i in range(self.blocks_per_stage)
        ]
        # With a changed width the shortcut starts behind the norm, so the stem feeds that norm alone.
        if cast(_WideBlock, self.block1.layer[0]).convShortcut is not None:
            pairs.append(("conv1", "block1.layer.0.bn1"))
        return pairs
