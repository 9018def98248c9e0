"""Small networks and data for tests of attacks."""

from __future__ import annotations

import copy
import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_core.attacks import ascend, draw_start, objectives

__all__ = ["CLASSES", "ConvNet", "linear_net", "prototypes", "trained_net"]

CLASSES = 6


class ConvNet(nn.Module):
    """Convolution, batch norm, dropout, features and head: all that could leave a trace."""

    def __init__(self, classes: int = 5, channels: int = 4, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, channels, 3, padding=1)
            self.norm = nn.BatchNorm2d(channels)
            self.drop = nn.Dropout(0.3)
            self.linear = nn.Linear(channels * 4, classes)

    def forward_features(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(F.silu(self.norm(self.conv(images))), 2)

    def forward_head(self, features: Tensor) -> Tensor:
        return 20.0 * self.linear(self.drop(features).flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def linear_net(weight: Tensor, bias: Tensor) -> nn.Module:
    """Return ``W x + b`` on flattened images."""
    linear = nn.Linear(weight.shape[1], weight.shape[0]).to(weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return nn.Sequential(nn.Flatten(), linear)


def prototypes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noisy copies of ``CLASSES`` drawn images 3x8x8 and their labels."""
    centres = torch.rand(CLASSES, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    noise = 0.15 * torch.randn(count, 3, 8, 8, generator=generator)
    return (0.5 + 0.5 * (centres[labels] - 0.5) + noise).clamp(0, 1), labels


def trained_net() -> nn.Module:
    """Return a small network after adversarial training on ``prototypes``; a copy of one that is trained once."""
    return copy.deepcopy(_trained())


@functools.cache
def _trained() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 48), nn.ReLU(), nn.Linear(48, CLASSES))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(2)
    for step in range(200):
        images, labels = prototypes(128, step)
        start = draw_start(images, eps=0.06, kind="uniform", generator=generator)
        adversarial = ascend(
            net,
            images,
            labels,
            start=start,
            eps=0.06,
            step_size=0.02,
            steps=4,
            objective=objectives.cross_entropy,
        )
        loss = F.cross_entropy(net(adversarial), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()
