"""Networks with reverse attention, under the official names of their tensors, and the same without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from ancra.attention import ATTENTIONS, ReverseAttention
from robust_core.errors import UserError, unknown_name
from robust_core.models import Network, build_model
from robust_core.models.preact import PreActResNet
from robust_core.models.resnet import ResNet
from robust_core.models.wide_resnet import WideResNet
from robust_core.randomness import seeded

__all__ = [
    "PreActResNetWithAttention",
    "ResNetWithAttention",
    "WideResNetWithAttention",
    "build_network",
]


class ResNetWithAttention(ReverseAttention, ResNet):
    """ResNet, all blocks of the last stage attended; its classifier is named ``fc``."""

    aliases: ClassVar[
        dict[str, str]
    ] = {}  # a plain ResNet's state dict, with its "linear.", is another network's
    fc: nn.Linear

    def trunk(self, images: Tensor) -> Tensor:
        """Return the output of the stages before the last."""
        out = F.relu(self.bn1(self.conv1(self.normalize(images))), inplace=True)
        for stage in self.stages[:-1]:
            out = self.get_submodule(stage)(out)
        return out

    def attended(self) -> Sequence[nn.Module]:
        """Return the blocks of the last stage."""
        return list(cast(nn.Sequential, self.get_submodule(self.stages[-1])))

    def classifier(self) -> nn.Linear:
        """Return ``fc``."""
        return self.fc


class WideResNetWithAttention(ReverseAttention, WideResNet):
    """WideResNet, the last two blocks attended, each behind the network's final norm and relu."""

    def trunk(self, images: Tensor) -> Tensor:
        """Return the output of the last block but two."""
        out = self.block2(self.block1(self.conv1(self.normalize(images))))
        for block in list(self.block3.layer)[:-2]:
            out = block(out)
        return cast(Tensor, out)

    def attended(self) -> Sequence[nn.Module]:
        """Return the last two blocks."""
        return list(self.block3.layer)[-2:]

    def finish(self, features: Tensor) -> Tensor:
        """Return the features behind ``bn1`` and relu."""
        return F.relu(self.bn1(features), inplace=True)

    def classifier(self) -> nn.Linear:
        """Return ``fc``."""
        return self.fc


class PreActResNetWithAttention(ReverseAttention, PreActResNet):
    """PreActResNet-18, both blocks of the last stage attended, each behind the network's final norm and relu."""

    pool: int | None = 4

    def trunk(self, images: Tensor) -> Tensor:
        """Return the output of the third stage."""
        return cast(Tensor, self.layer3(self.layer2(self.layer1(self.conv1(self.normalize(images))))))

    def attended(self) -> Sequence[nn.Module]:
        """Return the blocks of the last stage."""
        return list(self.layer4)

    def finish(self, features: Tensor) -> Tensor:
        """Return the features behind ``bn`` and relu."""
        return F.relu(self.bn(features), inplace=True)

    def classifier(self) -> nn.Linear:
        """Return ``linear``."""
        return self.linear


_WITH_ATTENTION: dict[type[Network], type[ReverseAttention]] = {
    ResNet: ResNetWithAttention,
    WideResNet: WideResNetWithAttention,
    PreActResNet: PreActResNetWithAttention,
}


def build_network(
    name: str,
    num_classes: int,
    *,
    attention: str = "reverse",
    image_size: int = 32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int | None = None,
) -> Network:
    """Return the core's network of this name with attention (``ATTENTIONS``) or, for "none", as it is.

    Arguments as of :func:`robust_core.models.build_model`; with a seed the weights that both have are the same
    with and without attention. Raises ``UserError`` for unknown names and networks too short to attend to.

    >>> import torch
    >>> build_network("resnet18-w16", 10, seed=0)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    if attention not in (*ATTENTIONS, "none"):
        raise unknown_name("attention", attention, (*ATTENTIONS, "none"))
    network = build_model(name, num_classes, image_size=image_size, mean=mean, std=std, seed=seed)
    if attention == "none":
        return network
    if isinstance(network, WideResNet) and network.blocks_per_stage < 2:
        raise UserError(
            f"{name} has one block in its last stage, but reverse attention weighs the last two: use a depth of "
            "16 or more."
        )
    return _attending(network, attention, seed)


def _attending(network: Network, attention: str, seed: int | None) -> ReverseAttention:
    """Make the network one with attention; its tensors stay as they are."""
    network.__class__ = _WITH_ATTENTION[type(network)]
    attending = cast(ReverseAttention, network)
    if isinstance(attending, ResNetWithAttention):
        attending.fc = attending.linear
        del attending.linear
    attending.attention = attention
    if attention == "own":
        with seeded(seed):
            attending.add_own_classifiers()
    return attending
