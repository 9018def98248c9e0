"""A small network trained by TRADES in a second on images that a few seconds of attacks tell apart."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn

from robust_core.attacks.engine import ascend
from robust_core.attacks.objectives import kl_to
from robust_core.data.types import DatasetInfo, ImageSet
from robust_core.losses import trades
from robust_core.models import frozen

__all__ = ["EPS", "MaskedByArgmax", "Rounded", "Scaled", "TinyNet", "tiny_images", "tiny_trades"]

EPS = 8 / 255
CLASSES = 4


def tiny_images(count, split="test"):
    """Images of four classes that differ in the sign of a pattern, in noise that is stronger than it."""
    generator = torch.Generator().manual_seed(11)
    patterns = torch.randn(CLASSES, 3, 8, 8, generator=generator).sign()
    draw = torch.Generator().manual_seed(12 if split == "test" else 13)
    labels = torch.arange(count) % CLASSES
    strength = 0.02 + 0.09 * torch.rand(count, 1, 1, 1, generator=draw)
    noise = 0.12 * torch.randn(count, 3, 8, 8, generator=draw)
    images = (0.5 + strength * patterns[labels] + noise).clamp(0, 1)
    return ImageSet(
        info=DatasetInfo("tiny", "Tiny", tuple("abcd"), 8, (0.5,) * 3, (0.25,) * 3),
        split=split,
        images=(images * 255).round().to(torch.uint8),
        labels=labels,
        indices=torch.arange(count),
    )


class TinyNet(nn.Module):
    """Features and a linear head."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 8), nn.Flatten(), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images):
        return self.head(self.body(images - 0.5))


@functools.cache
def tiny_trades(seed=0):
    """Return the trained network in evaluation mode; a copy is for who changes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = TinyNet()
        data = tiny_images(512, "train")
        images, labels = data.pixels(slice(None)), data.labels
        optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
        for step in range(90):
            view = frozen(net)
            radius = EPS * min(1.0, step / 60)
            with torch.no_grad():
                start = images + 0.001 * torch.randn(images.shape)
                attacked = ascend(
                    view, images, labels, start=start, eps=radius, step_size=radius / 3, steps=4,
                    objective=kl_to(view(images)),
                )  # fmt: skip
            optimizer.zero_grad()
            trades(net(images), net(attacked), labels, beta=3.0).backward()
            optimizer.step()
    return net.eval()


class Scaled(nn.Module):
    """Logits so large that the softmax has no gradient left."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return 1e4 * self.net(images)


class Rounded(nn.Module):
    """Sixteen levels of brightness: no gradient goes through, and single levels flip."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net((images * 15).round() / 15)


class MaskedByArgmax(nn.Module):
    """The head's logits behind a mask of the features that a first guess chooses: the choice has no gradient."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def guess(self, images):
        return self.net(images)

    def forward(self, images):
        features = self.net.body(images - 0.5)
        chosen = F.embedding(self.net.head(features).argmax(dim=1), self.net.head.weight)
        return self.net.head(features * chosen)
