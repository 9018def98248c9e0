"""Linear networks whose robustness is known or mixed, for attacks that need many queries."""

from __future__ import annotations

import functools

import torch
from small_nets import linear_net

__all__ = ["linear_problem", "problem", "seeded", "standing_count"]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@functools.cache
def problem(count=60):
    """A random linear network, images off the box that it gets right, some near and some far from falling."""
    net = linear_net(torch.randn(6, 192, generator=seeded(4)), torch.zeros(6))
    images = 0.2 + 0.6 * torch.rand(count, 3, 8, 8, generator=seeded(5))
    with torch.no_grad():
        return net, images, net(images).argmax(1)


def standing_count(images, net=None):
    linear, _, labels = problem(len(images))
    with torch.no_grad():
        return ((net or linear)(images).argmax(1) == labels).sum().item()


def linear_problem(count, size, seed=3):
    """Two classes, no pixel near the box, and the distance at which each image falls: margin / |w|_1."""
    draw = functools.partial(torch.rand, generator=seeded(seed), dtype=torch.float64)
    images = 0.3 + 0.4 * draw(count, *size)
    weight = draw(2, images[0].numel()) - 0.5
    weight -= weight.mean(1, keepdim=True)
    net = linear_net(weight, -0.5 * weight.sum(1))
    with torch.no_grad():
        logits = net(images)
    difference = weight[1] - weight[0]
    return net, images, logits.argmax(1), (logits[:, 1] - logits[:, 0]).abs() / difference.abs().sum()
