"""``shapes``: figures drawn from a seed, so that everything runs without any download.

Ten classes of figures vary in place, size, rotation, colour, texture and contrast, on textured backgrounds with noise.
In ``shapes-grouped`` two classes of figures stand on warm or cool backgrounds, which follow the class in 95% of the
training images, in the proportions of Waterbirds (Sagawa et al. 2020). All arithmetic is in float64 and every draw
comes from the seed, so that the pixels are the same everywhere; ``SHAPES_VERSION`` changes when they do.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import torch
from torch import Tensor

from robust_core.data.figures import FIGURES, signed_distance
from robust_core.data.types import DatasetInfo, ImageSet
from robust_core.randomness import generator_for

__all__ = ["SHAPES_VERSION", "draw", "load_shapes"]

SHAPES_VERSION = 1
SIZE = 32
CONTRAST = (0.4, 1.0)
NOISE = (0.01, 0.05)
_CHUNK = 500  # images drawn at once; keeps the float64 temporaries in the cache

# (class, background) -> images, backgrounds warm and cool; Waterbirds' counts for training and validation
_GROUP_COUNTS = {
    "train": (3498, 184, 56, 1057),
    "validation": (467, 466, 133, 133),
    "test": (500, 500, 500, 500),
}
_GROUPED_FIGURES = (("disc", "ring", "crescent", "heart"), ("square", "triangle", "star", "cross"))


class _Draw:
    """Uniform draws for a set of images, in float64, one row per image."""

    def __init__(self, n: int, seed: int, purpose: str) -> None:
        self.n = n
        self.generator = generator_for(seed, purpose)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        draw = torch.rand((self.n, *shape), generator=self.generator, dtype=torch.float64)
        return low + (high - low) * draw

    def integer(self, count: int) -> Tensor:
        return torch.randint(count, (self.n,), generator=self.generator)


class _Texture(NamedTuple):
    """A pattern in [-1, 1] per image: kind (plain, stripes, checks, dots, slope, waves), place and strength."""

    kind: Tensor
    angle: Tensor
    period: Tensor
    phase: Tensor
    strength: Tensor

    @classmethod
    def drawn(cls, draw: _Draw, strength: tuple[float, float]) -> _Texture:
        return cls(
            kind=draw.integer(6),
            angle=draw.uniform(0, math.pi),
            period=draw.uniform(4, 11),
            phase=draw.uniform(0, 2 * math.pi, 2),
            strength=draw.uniform(*strength),
        )

    def rows(self, chosen: slice) -> _Texture:
        return _Texture(*(value[chosen] for value in self))

    def pattern(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the pattern ``(n, H, W)`` at pixel coordinates ``(n, H, W)``."""

        def wide(value: Tensor) -> Tensor:
            return value[:, None, None]

        cos, sin = wide(self.angle.cos()), wide(self.angle.sin())
        along, across = cos * x + sin * y, cos * y - sin * x
        rate = 2 * math.pi / wide(self.period)
        first = (rate * along + wide(self.phase[:, 0])).sin()
        second = (rate * across + wide(self.phase[:, 1])).sin()
        kinds = (
            torch.zeros_like(first),
            (3 * first).clamp(-1, 1),
            (6 * first * second).clamp(-1, 1),
            (4 * (first + second) - 3).clamp(-1, 1),
            (along / (SIZE / 2)).clamp(-1, 1),
            (rate * along + wide(self.phase[:, 0]) + 2 * (0.5 * rate * across).sin()).sin(),
        )
        pattern = kinds[0]
        for kind in range(1, len(kinds)):
            pattern = torch.where(wide(self.kind) == kind, kinds[kind], pattern)
        return wide(self.strength) * pattern


def _colours(draw: _Draw, warm: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return colours ``(n, 3)`` of background and figure; their largest difference in a channel is the contrast.

    ``warm`` bool ``(n,)`` fixes the family of the background: red and yellow, or blue and cyan.
    """
    contrast = draw.uniform(*CONTRAST)
    background, figure = draw.uniform(0.1, 0.9, 3), draw.uniform(0, 1, 3)
    if warm is not None:
        high, middle, low = draw.uniform(0.6, 0.95), draw.uniform(0.3, 0.7), draw.uniform(0.05, 0.3)
        red, blue = torch.where(warm, high, low), torch.where(warm, low, high)
        background = torch.stack([red, middle, blue], dim=1)
    # the leading channel carries the contrast; the background gives way where the contrast leaves no room
    lead = draw.integer(3)[:, None]
    base = background.gather(1, lead).squeeze(1)
    up = torch.where((base + contrast <= 1) & (base - contrast >= 0), draw.uniform(0, 1) < 0.5, base < 0.5)
    base = torch.where(up, torch.minimum(base, 1 - contrast), torch.maximum(base, contrast))
    background = background.scatter(1, lead, base[:, None])
    figure = background + (figure - background).clamp(-contrast[:, None], contrast[:, None])
    figure = figure.scatter(1, lead, (base + torch.where(up, contrast, -contrast))[:, None])
    return background, figure


def draw(figures: Tensor, seed: int, purpose: str, warm: Tensor | None = None) -> Tensor:
    """Return one picture, uint8 ``(n, 3, 32, 32)``, for each figure, int64 ``(n,)``: a position in ``FIGURES``."""
    n = len(figures)
    draw = _Draw(n, seed, f"{purpose} of shapes {SHAPES_VERSION}")
    radius = draw.uniform(7.5, 12.5)
    room = (SIZE / 2 - 0.85 * radius)[:, None]
    centre = SIZE / 2 - 0.5 + room * draw.uniform(-1, 1, 2)
    angle = draw.uniform(0, 2 * math.pi)
    background, figure = _colours(draw, warm)
    textures = _Texture.drawn(draw, (0.02, 0.12)), _Texture.drawn(draw, (0.02, 0.10))
    sigma = draw.uniform(*NOISE)
    axis = torch.arange(SIZE, dtype=torch.float64)
    images = torch.empty((n, 3, SIZE, SIZE), dtype=torch.uint8)
    for start in range(0, n, _CHUNK):
        chosen = slice(start, start + _CHUNK)
        x = (axis[None, None, :] - centre[chosen, 0, None, None]).expand(-1, SIZE, -1)
        y = (axis[None, :, None] - centre[chosen, 1, None, None]).expand(-1, -1, SIZE)
        cos, sin = angle[chosen].cos()[:, None, None], angle[chosen].sin()[:, None, None]
        scale = radius[chosen, None, None]
        distance = signed_distance(figures[chosen], (cos * x + sin * y) / scale, (cos * y - sin * x) / scale)
        cover = (0.5 - distance * scale).clamp(0, 1)[:, None]  # one pixel of soft edge
        back = background[chosen, :, None, None] + textures[0].rows(chosen).pattern(x, y)[:, None]
        front = figure[chosen, :, None, None] + textures[1].rows(chosen).pattern(x, y)[:, None]
        noise = torch.randn(back.shape, generator=draw.generator, dtype=torch.float64)
        pixels = back + cover * (front - back) + sigma[chosen, None, None, None] * noise
        images[chosen] = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return images


def load_shapes(info: DatasetInfo, split: str, seed: int) -> ImageSet:
    """Return a split of ``shapes`` or ``shapes-grouped``."""
    groups = None
    if info.groups is None:
        labels = torch.arange(info.official_counts[split]) % info.num_classes
        images = draw(labels, seed, split)
    else:
        labels, groups = _grouped_labels(split, seed)
        kinds = torch.tensor([[FIGURES.index(name) for name in names] for names in _GROUPED_FIGURES])
        which = _Draw(len(labels), seed, f"{split} figures of grouped shapes {SHAPES_VERSION}").integer(
            kinds.shape[1]
        )
        images = draw(kinds[labels, which], seed, f"{split} grouped", warm=groups % 2 == 0)
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
