"""The official PreActResNet-18 of GDRO-AT: a stem for large images, and no norm behind the last block."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from robust_core.models import Network, PooledHead
from robust_core.models.preact import PreActBlock

__all__ = ["PreActResNet18"]

_STAGES = ("layer1", "layer2", "layer3", "layer4")


class PreActResNet18(Network):
    """7x7 stem, norm, relu, max pool, four stages of two pre-activation blocks, pooling, ``linear``.

    Source: the official ``models.py``. Published for 224 pixels, where the last map is 7x7 and its 7x7 average pooling
    is the mean of the whole map. Here it is that mean at every image size: equal at 224 pixels, and the only one of
    the two that fits maps smaller than 7x7. It differs from the core's ``preactresnet18`` in the stem and in having
    neither norm nor relu behind the last block.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        *,
        image_size: int = 224,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(name, num_classes, image_size=image_size, mean=mean, std=std)
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        in_planes = 64
        for stage, planes in zip(_STAGES, (64, 128, 256, 512), strict=True):
            stride = 1 if stage == "layer1" else 2
            blocks = (PreActBlock(in_planes, planes, stride), PreActBlock(planes, planes, 1))
            self.add_module(stage, nn.Sequential(*blocks))
            in_planes = planes
        self.linear = nn.Linear(in_planes, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last stage's output ``(N, 512, h, w)``, of both signs; 7x7 at 224 pixels."""
        out: Tensor = self.maxpool(F.relu(self.bn1(self.conv1(self.normalize(images))), inplace=True))
        for stage in _STAGES:
            out = self.get_submodule(stage)(out)
        return out

    def pooled_head(self) -> PooledHead:
        """Return the head: average pooling of the whole map and ``linear``."""
        return PooledHead(norm=None, relu=False, pool=None, linear=self.linear)

    def conv_norm_pairs(self) -> list[tuple[str, str]]:
        """Return the stem's pair and each block's first convolution and second norm; the others follow additions."""
        inner = [(f"{stage}.{i}.conv1", f"{stage}.{i}.bn2") for stage in _STAGES for i in range(2)]
        return [("conv1", "bn1"), *inner]
