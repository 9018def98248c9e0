"""The ten figures of ``shapes``, as distances to their outlines.

A figure fits the unit circle around the origin. The distance is negative inside and good near the outline, which is
all that a soft edge needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["FIGURES", "signed_distance"]

_Distance = Callable[[Tensor, Tensor], Tensor]


def _disc(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.9


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.72).abs() - 0.22


def _box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    return torch.maximum(x.abs() - width, y.abs() - height)


def _square(x: Tensor, y: Tensor) -> Tensor:
    return _box(x, y, 0.74, 0.74)


def _polygon(x: Tensor, y: Tensor, sides: int, inner: float) -> Tensor:
    """Return the distance to a regular polygon whose sides lie ``inner`` from the centre."""
    angles = [2 * math.pi * k / sides for k in range(sides)]
    return torch.stack([math.sin(a) * x - math.cos(a) * y for a in angles]).amax(0) - inner


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return _polygon(x, -y + 0.12, 3, 0.52)


def _star(x: Tensor, y: Tensor) -> Tensor:
    # five lines make the pentagram: a point is inside unless two of them have it outside
    angles = [2 * math.pi * k / 5 for k in range(5)]
    sides = torch.stack([math.sin(a) * x - math.cos(a) * y for a in angles]) - 0.36
    return sides.topk(2, dim=0).values[1]


def _cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, 0.92, 0.27), _box(x, y, 0.27, 0.92))


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(x, y) - 0.95, 0.78 - torch.hypot(x - 0.42, y))


def _heart(x: Tensor, y: Tensor) -> Tensor:
    lobe = torch.hypot(x.abs() - 0.43, y + 0.30) - 0.47
    tip = torch.maximum((x.abs() + y - 0.86) * math.sqrt(0.5), -y - 0.30 + 0 * x)
    core = torch.maximum(tip, (x.abs() - y - 0.62) * math.sqrt(0.5))
    return torch.minimum(lobe, core)


def _arrow(x: Tensor, y: Tensor) -> Tensor:
    head = torch.maximum((x.abs() - y - 0.95) * math.sqrt(0.5), y + 0.12)
    return torch.minimum(head, _box(x, y - 0.4, 0.2, 0.55))


def _bars(x: Tensor, y: Tensor) -> Tensor:
    return _box(x, y.abs() - 0.5, 0.84, 0.24)


_DISTANCES: dict[str, _Distance] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "crescent": _crescent,
    "heart": _heart,
    "arrow": _arrow,
    "bars": _bars,
}
FIGURES = tuple(_DISTANCES)


def signed_distance(figures: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return distances ``(n, H, W)`` at ``x``, ``y`` ``(n, H, W)`` to figure ``figures[i]`` of ``FIGURES`` in row i."""
    distance = torch.empty_like(x)
    for kind, name in enumerate(FIGURES):
        rows = (figures == kind).nonzero().squeeze(1)
        distance[rows] = _DISTANCES[name](x[rows], y[rows])
    return distance
