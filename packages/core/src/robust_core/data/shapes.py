"""``shapes``: figures drawn from a seed, so that everything runs without any download.

Ten classes of figures vary in place, size, rotation, colour, texture and contrast, on textured
backgrounds with noise. In ``shapes-grouped`` two classes of figures stand on warm or cool backgrounds,
which follow the class in 95% of the training images, in the proportions of Waterbirds (Sagawa et al.
2020). All arithmetic is in float64 and every draw comes from the seed, so that the pixels are the same
everywhere; ``SHAPES_VERSION`` changes when they do.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_core.data.figures import FIGURES, signed_distance
from robust_core.data.types import DatasetInfo, ImageSet
from robust_core.randomness import generator_for

__all__ = ["SHAPES_VERSION", "draw_figures", "load_shapes"]

SHAPES_VERSION = 1
SIZE = 32
RADIUS = (8.0, 12.5)
CONTRAST = (0.4, 1.0)
OTHER_CHANNELS = 0.1  # of the contrast; more of it makes the figures too robust to show a trade-off
NOISE = (0.005, 0.02)
_CHUNK = 100  # images drawn at once, so that the float64 temporaries stay in the cache
_Array = NDArray[np.float64]

# (class, background) -> images, backgrounds warm and cool; Waterbirds' counts for training and validation
_GROUP_COUNTS = {
    "train": (3498, 184, 56, 1057),
    "validation": (467, 466, 133, 133),
    "test": (500, 500, 500, 500),
}
_GROUPED_FIGURES = (("disc", "ring", "crescent", "heart"), ("square", "triangle", "star", "cross"))


class _Draw:
    """Uniform draws for a set of images, one row per image."""

    def __init__(self, n: int, seed: int, purpose: str) -> None:
        self.n = n
        self.generator = generator_for(seed, f"{purpose} of shapes {SHAPES_VERSION}")

    def uniform(self, low: float, high: float, *shape: int) -> _Array:
        draw = torch.rand((self.n, *shape), generator=self.generator, dtype=torch.float64)
        return low + (high - low) * draw.numpy()

    def integer(self, count: int) -> NDArray[np.int64]:
        return torch.randint(count, (self.n,), generator=self.generator).numpy()


class _Texture(NamedTuple):
    """A pattern per image: its kind, place and strength (the amplitude)."""

    kind: NDArray[np.int64]
    angle: _Array
    period: _Array
    phase: _Array
    strength: _Array

    @classmethod
    def drawn(cls, draw: _Draw, strength: tuple[float, float]) -> _Texture:
        return cls(
            kind=draw.integer(len(_PATTERNS) + 1),
            angle=draw.uniform(0, math.pi),
            period=draw.uniform(4, 11),
            phase=draw.uniform(0, 2 * math.pi, 2),
            strength=draw.uniform(*strength),
        )

    def rows(self, chosen: slice) -> _Texture:
        kind, *others = self
        return _Texture(kind[chosen], *(value[chosen] for value in others))

    def pattern(self, x: _Array, y: _Array) -> _Array:
        """Return the pattern ``(n, H, W)`` at pixel coordinates ``(n, H, W)``."""
        pattern = np.zeros_like(x)
        for kind, draw_pattern in enumerate(_PATTERNS, start=1):  # kind 0 is plain
            rows = np.flatnonzero(self.kind == kind)
            angle, period, first, second, strength = (
                value[rows, None, None]
                for value in (self.angle, self.period, self.phase[:, 0], self.phase[:, 1], self.strength)
            )
            cos, sin, rate = np.cos(angle), np.sin(angle), 2 * math.pi / period
            along = cos * x[rows] + sin * y[rows]
            across = cos * y[rows] - sin * x[rows]
            pattern[rows] = strength * draw_pattern(rate * along + first, rate * across + second)
        return pattern


def _sin(angle: _Array) -> _Array:
    return np.asarray(np.sin(angle))


def _stripes(u: _Array, _: _Array) -> _Array:
    return (3 * _sin(u)).clip(-1, 1)


def _checks(u: _Array, v: _Array) -> _Array:
    return (6 * _sin(u) * _sin(v)).clip(-1, 1)


def _dots(u: _Array, v: _Array) -> _Array:
    return (4 * (_sin(u) + _sin(v)) - 3).clip(-1, 1)


def _slope(u: _Array, _: _Array) -> _Array:
    return _sin(u / 12)


def _waves(u: _Array, v: _Array) -> _Array:
    return _sin(u + 2 * _sin(0.5 * v))


_PATTERNS = (_stripes, _checks, _dots, _slope, _waves)


def _colours(draw: _Draw, warm: NDArray[np.bool_] | None) -> tuple[_Array, _Array]:
    """Return colours ``(n, 3)`` of background and figure; their largest difference is the contrast.

    ``warm`` bool ``(n,)`` fixes the family of the background: red and yellow, or blue and cyan.
    """
    contrast = draw.uniform(*CONTRAST)
    background, figure = draw.uniform(0.1, 0.9, 3), draw.uniform(0, 1, 3)
    if warm is not None:
        high, middle, low = draw.uniform(0.6, 0.95), draw.uniform(0.3, 0.7), draw.uniform(0.05, 0.3)
        background = np.stack([np.where(warm, high, low), middle, np.where(warm, low, high)], axis=1)
    # the leading channel carries the contrast; the background gives way where the contrast leaves no room
    rows, lead = np.arange(draw.n), draw.integer(3)
    base = background[rows, lead]
    either = (base + contrast <= 1) & (base - contrast >= 0)
    up = np.where(either, draw.uniform(0, 1) < 0.5, base < 0.5)
    base = np.where(up, np.minimum(base, 1 - contrast), np.maximum(base, contrast))
    background[rows, lead] = base
    limit = OTHER_CHANNELS * contrast[:, None]
    figure = background + np.clip(figure - background, -limit, limit)
    figure[rows, lead] = base + np.where(up, contrast, -contrast)
    return background, figure


def draw_figures(figures: Tensor, seed: int, purpose: str, warm: Tensor | None = None) -> Tensor:
    """Return pictures, uint8 ``(n, 3, 32, 32)``, of ``figures``, int64 ``(n,)``: places in ``FIGURES``.

    ``warm`` bool ``(n,)`` chooses warm or cool backgrounds; None gives any colour.
    """
    n = len(figures)
    draw = _Draw(n, seed, purpose)
    radius = draw.uniform(*RADIUS)
    room = (SIZE / 2 - 0.85 * radius)[:, None]
    centre = SIZE / 2 - 0.5 + room * draw.uniform(-1, 1, 2)
    angle = draw.uniform(0, 2 * math.pi)
    background, figure = _colours(draw, None if warm is None else warm.numpy())
    textures = _Texture.drawn(draw, (0.02, 0.12)), _Texture.drawn(draw, (0.02, 0.10))
    sigma = draw.uniform(*NOISE)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float64)
    images = np.empty((n, 3, SIZE, SIZE), dtype=np.uint8)
    for start in range(0, n, _CHUNK):
        rows = slice(start, start + _CHUNK)
        dx, dy = x - centre[rows, 0, None, None], y - centre[rows, 1, None, None]
        cos, sin = np.cos(angle[rows, None, None]), np.sin(angle[rows, None, None])
        scale = radius[rows, None, None]
        distance = signed_distance(
            figures[rows].numpy(), (cos * dx + sin * dy) / scale, (cos * dy - sin * dx) / scale
        )
        cover = np.clip(0.5 - distance * scale, 0, 1)[:, None]  # one pixel of soft edge
        back = background[rows, :, None, None] + textures[0].rows(rows).pattern(dx, dy)[:, None]
        front = figure[rows, :, None, None] + textures[1].rows(rows).pattern(dx, dy)[:, None]
        noise = torch.randn(back.shape, generator=draw.generator, dtype=torch.float64).numpy()
        pixels = back + cover * (front - back) + sigma[rows, None, None, None] * noise
        images[rows] = np.rint(255 * np.clip(pixels, 0, 1))
    return torch.from_numpy(images)


def load_shapes(info: DatasetInfo, split: str, seed: int) -> ImageSet:
    """Return a split of ``shapes`` or ``shapes-grouped``."""
    groups = None
    if info.groups is None:
        labels = torch.arange(info.official_counts[split]) % info.num_classes
        images = draw_figures(labels, seed, split)
    else:
        labels, groups = _grouped_labels(split, seed)
        kinds = torch.tensor([[FIGURES.index(name) for name in names] for names in _GROUPED_FIGURES])
        which = _Draw(len(labels), seed, f"{split} figures of grouped shapes {SHAPES_VERSION}").integer(
            kinds.shape[1]
        )
        images = draw_figures(
            kinds[labels, torch.from_numpy(which)], seed, f"{split} grouped", warm=groups % 2 == 0
        )
    digest = hashlib.sha256(f"{info.name} {SHAPES_VERSION}".encode())
    for tensor in (images, labels) if groups is None else (images, labels, groups):
        digest.update(tensor.numpy().tobytes())
    return ImageSet(
        info=info,
        split=split,
        images=images,
        labels=labels,
        indices=torch.arange(len(labels)),
        groups=groups,
        digest=digest.hexdigest(),
    )


def _grouped_labels(split: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return labels and groups (2 * class + background), shuffled."""
    groups = torch.arange(4).repeat_interleave(torch.tensor(_GROUP_COUNTS[split]))
    generator = generator_for(seed, f"{split} groups of shapes {SHAPES_VERSION}")
    groups = groups[torch.randperm(len(groups), generator=generator)]
    return groups // 2, groups
