"""The ten figures of ``shapes``, as distances to their outlines.

A figure fits the unit circle around the origin. The distance is negative inside and good near the
outline, which is all that a soft edge needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIGURES", "signed_distance"]

_Array = NDArray[np.float64]
_Distance = Callable[[_Array, _Array], _Array]


def _radius(x: _Array, y: _Array) -> _Array:
    return np.sqrt(x * x + y * y)  # much faster than hypot


def _disc(x: _Array, y: _Array) -> _Array:
    return _radius(x, y) - 0.9


def _ring(x: _Array, y: _Array) -> _Array:
    return np.abs(_radius(x, y) - 0.72) - 0.22


def _box(x: _Array, y: _Array, width: float, height: float) -> _Array:
    return np.maximum(np.abs(x) - width, np.abs(y) - height)


def _square(x: _Array, y: _Array) -> _Array:
    return _box(x, y, 0.74, 0.74)


def _polygon(x: _Array, y: _Array, sides: int, inner: float) -> _Array:
    """Return the distance to a regular polygon whose sides lie ``inner`` from the centre."""
    angles = [2 * math.pi * k / sides for k in range(sides)]
    return np.asarray(np.max([math.sin(a) * x - math.cos(a) * y for a in angles], axis=0) - inner)


def _triangle(x: _Array, y: _Array) -> _Array:
    return _polygon(x, y, 3, 0.51)


def _star(x: _Array, y: _Array) -> _Array:
    # five lines make the pentagram: a point is inside unless two of them have it outside
    angles = [2 * math.pi * k / 5 for k in range(5)]
    sides = np.sort([math.sin(a) * x - math.cos(a) * y for a in angles], axis=0)
    return np.asarray(sides[-2] - 0.315)


def _cross(x: _Array, y: _Array) -> _Array:
    return np.minimum(_box(x, y, 0.92, 0.27), _box(x, y, 0.27, 0.92))


def _crescent(x: _Array, y: _Array) -> _Array:
    return np.maximum(_radius(x, y) - 0.95, 0.78 - _radius(x - 0.42, y))


def _heart(x: _Array, y: _Array) -> _Array:
    lobe = _radius(np.abs(x) - 0.5, y + 0.3) - 0.45
    tip = np.maximum((np.abs(x) + y - 0.836) * math.sqrt(0.5), -y - 0.3)
    core = np.maximum(tip, (np.abs(x) - y - 0.8) * math.sqrt(0.5))
    return np.minimum(lobe, core)


def _arrow(x: _Array, y: _Array) -> _Array:
    head = np.maximum((np.abs(x) - y - 0.95) * math.sqrt(0.5), y + 0.12)
    return np.minimum(head, _box(x, y - 0.4, 0.2, 0.55))


def _bars(x: _Array, y: _Array) -> _Array:
    return _box(x, np.abs(y) - 0.45, 0.78, 0.2)


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


def signed_distance(figures: NDArray[np.int64], x: _Array, y: _Array) -> _Array:
    """Return distances ``(n, H, W)``, at ``x``, ``y`` ``(n, H, W)``, to places ``figures`` of ``FIGURES``."""
    distance = np.empty_like(x)
    for kind, name in enumerate(FIGURES):
        rows = np.flatnonzero(figures == kind)
        distance[rows] = _DISTANCES[name](x[rows], y[rows])
    return distance
