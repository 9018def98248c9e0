"""The sets that an attack may not leave: a ball around each image, cut with the box [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["NORMS", "Ball", "L2Ball", "LinfBall", "make_ball", "per_image", "select_rows", "unit"]

NORMS = ("linf", "l2")


def per_image(value: float | Tensor, images: Tensor) -> float | Tensor:
    """Return ``value`` so that it broadcasts to ``images``: ``(N,)`` becomes ``(N, 1, ...)``."""
    if not isinstance(value, Tensor):
        return float(value)
    value = value.to(images)
    return value.view(-1, *[1] * (images.dim() - 1)) if value.dim() == 1 else value


def select_rows(value: float | Tensor, rows: Tensor, dim: int) -> float | Tensor:
    """Return the rows of a broadcast value; what is shared by all images stays as it is."""
    if isinstance(value, Tensor) and value.dim() == dim and value.shape[0] > 1:
        return value[rows]
    return value


@dataclass(frozen=True)
class LinfBall:
    """Images within ``eps`` of the natural ones in every pixel and within [0, 1]: ``lower <= x <= upper``."""

    lower: Tensor
    upper: Tensor

    def step(self, iterate: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """Return the next iterate ``(N, ...)``: a step along the gradient's sign, clamped."""
        if isinstance(step_size, Tensor):
            moved = torch.addcmul(iterate, gradient.sign(), step_size)
        else:
            moved = torch.add(iterate, gradient.sign(), alpha=step_size)
        return moved.clamp_(self.lower, self.upper)

    def project(self, points: Tensor) -> Tensor:
        """Return the nearest points of the set."""
        return points.clamp(self.lower, self.upper)

    def contains(self, points: Tensor) -> Tensor:
        """Return which images ``(N,)`` lie in the set, bool."""
        return ((points >= self.lower) & (points <= self.upper)).flatten(1).all(1)

    def select(self, rows: Tensor) -> LinfBall:
        """Return the set for some images of the batch."""
        return LinfBall(self.lower[rows], self.upper[rows])


@dataclass(frozen=True)
class L2Ball:
    """Images within Euclidean distance ``radius`` of the natural ones and within [0, 1].

    ``radius`` is a number or ``(N, 1, ...)``. Box first, then ball: the segment from an image of the box to
    its natural image stays in the box (the published order of TRADES).
    """

    images: Tensor
    radius: float | Tensor

    def step(self, iterate: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """Return the next iterate ``(N, ...)``: a step of length ``step_size``, brought back into the set."""
        return self.project(iterate + step_size * unit(gradient))

    def project(self, points: Tensor) -> Tensor:
        """Return points of the set: clipped to the box, then scaled towards the natural image."""
        offset = points.clamp(0.0, 1.0) - self.images
        length = _norm(offset)
        scale = torch.where(length > self.radius, self.radius / (length + 1e-7), 1.0)
        return (self.images + offset * scale).clamp_(0.0, 1.0)

    def contains(self, points: Tensor) -> Tensor:
        """Return which images ``(N,)`` lie in the set, bool (the length up to its rounding)."""
        in_box = ((points >= 0) & (points <= 1)).flatten(1).all(1)
        in_ball = _norm(points - self.images) <= self.radius * (1 + 1e-6)
        return in_box & in_ball.flatten()

    def select(self, rows: Tensor) -> L2Ball:
        """Return the set for some images of the batch."""
        return L2Ball(self.images[rows], select_rows(self.radius, rows, self.images.dim()))


Ball = LinfBall | L2Ball


def make_ball(images: Tensor, eps: float | Tensor, norm: str = "linf") -> Ball:
    """Return the set around ``images`` ``(N, ...)``; ``eps`` a number, ``(N,)`` or (L-inf) per pixel."""
    radius = per_image(eps, images)
    if norm == "l2":
        return L2Ball(images, radius)
    # both bounds in the box, so that an image outside of it (published normalised ones) ends inside
    return LinfBall((images - radius).clamp_(0.0, 1.0), (images + radius).clamp_(0.0, 1.0))


def _norm(tensor: Tensor) -> Tensor:
    """Return the Euclidean norm per image, ``(N, 1, ...)``."""
    length: Tensor = torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.dim())), keepdim=True)
    return length


def unit(gradient: Tensor) -> Tensor:
    """Return the gradient with norm 1 per image (0 stays 0), safe where its square underflows."""
    largest = gradient.abs().amax(dim=tuple(range(1, gradient.dim())), keepdim=True)
    scaled = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled / _norm(scaled).clamp_min(0.5)
