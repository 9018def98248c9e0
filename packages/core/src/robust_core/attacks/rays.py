"""RayS (Chen and Gu 2020): the nearest adversarial point along rays of signs, from predicted classes alone."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from robust_core.attacks.checks import (
    check_call,
    check_count,
    check_generator,
    check_labels_fit,
    check_no_nan,
)
from robust_core.attacks.engine import Classifier, in_layout_of, natural_layout, natural_logits, network_for
from robust_core.attacks.search import Observer, Standing, check_early_stop, fooled, standing_among
from robust_core.errors import UserError

__all__ = ["TOLERANCE", "rays"]

TOLERANCE = 1e-3
"""To which a radius is searched, in pixel units (as published)."""


def rays(
    model: nn.Module | Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    queries: int = 10_000,
    early_stop: bool | Standing = True,
    observe: Observer | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return ``image + min(radius, eps) * direction``, cut to [0, 1], with the best direction found.

    Directions are signs per pixel and channel. Blocks of them are flipped in turn, ever smaller ones; where
    the flipped direction fools the model at the best radius so far, its own radius is found by bisection. The
    result fools the model if a radius of at most ``eps`` was found; otherwise it is the best direction cut at
    ``eps`` (all signs positive if none fools the model at any radius), and an image that the model gets wrong
    is returned as it is.

    Args:
        eps: L-inf, in pixel units (8/255): a number or ``(N,)``.
        queries: forward passes per image, that of the image itself included.
        early_stop: images with a radius of at most ``eps`` leave the batch; False: all radii are lowered to
            the end. Or a function from positions ``(n,)`` to bool: an image is attacked as long as it stands.
        observe: called with the points that fool the model within ``eps`` and their images' positions.
        generator: taken as by every attack; RayS draws nothing.

    Other arguments and errors as in :func:`robust_core.attacks.pgd`.
    """
    highest = check_call(images, labels, eps=eps)
    check_count("queries", queries, 1)
    check_early_stop(early_stop)
    check_generator(generator)
    network = network_for(model, images)
    natural = natural_layout(network, images.detach())
    best = _begin(natural, labels, _radius_per_image(eps, natural))
    state = best.select(_left(best, early_stop))
    for index in range(queries):
        if len(state.rows) == 0:
            break
        radius, point = state.query()
        logits = natural_logits(network, point)
        if index == 0:
            check_labels_fit(highest, logits, len(point))
            check_no_nan(logits)
        hit = fooled(logits, state.labels, False)
        if observe is not None:
            shown = (hit & (radius <= state.reach)).nonzero().squeeze(1)
            if len(shown) > 0:
                observe(point[shown], state.rows[shown])
        state = state.learn(radius, hit)
        kept = _left(state, early_stop)
        if len(kept) < len(state.rows) or index == queries - 1:
            best.signs[state.rows], best.radius[state.rows] = state.signs, state.radius
            state = state.select(kept)
    return in_layout_of(_points(natural, best.signs, best.radius.minimum(best.reach)), images)


def _left(state: _State, early_stop: bool | Standing) -> Tensor:
    """Return the places of the images that are still to be attacked."""
    if callable(early_stop):
        return standing_among(early_stop, state.rows)
    return (~((state.radius <= state.reach) & early_stop)).nonzero().squeeze(1)


def _points(natural: Tensor, signs: Tensor, radius: Tensor) -> Tensor:
    """Return the images moved by ``radius`` ``(n,)`` along ``signs`` ``(n, D)``, cut to the box."""
    wide = radius.view(-1, *[1] * (natural.dim() - 1))
    return torch.where(signs.view(natural.shape), natural + wide, natural - wide).clamp_(0.0, 1.0)


@dataclass(frozen=True)
class _State:
    """The search of each image that is still attacked; ``signs`` are True for plus.

    ``signs``, ``radius``: the best so far. ``trial``: the signs in question. ``bisecting``: the trial fools
    the model at ``radius``, and does not at ``low``. ``first``, ``size``: the block that is flipped.
    """

    rows: Tensor
    labels: Tensor
    natural: Tensor
    reach: Tensor
    signs: Tensor
    radius: Tensor
    trial: Tensor
    bisecting: Tensor
    low: Tensor
    first: Tensor
    size: Tensor

    def select(self, kept: Tensor) -> _State:
        parts: dict[str, Any] = {entry.name: getattr(self, entry.name)[kept] for entry in fields(self)}
        return _State(**parts)

    def query(self) -> tuple[Tensor, Tensor]:
        """Return the radius ``(n,)`` and the point to ask the model about."""
        # At radius 1 every ray has left the box: nothing lies further.
        whole = torch.where(self.first < -self.size, 0.0, self.radius.clamp_max(1.0))
        radius = torch.where(self.bisecting, (self.low + self.radius) / 2, whole)
        return radius, _points(self.natural, self.trial, radius)

    def learn(self, radius: Tensor, hit: Tensor) -> _State:
        """Return the state after the answer at ``radius``."""
        better = hit & (radius < self.radius)
        best = torch.where(better, radius, self.radius)
        signs = torch.where(better[:, None], self.trial, self.signs)
        low = torch.where(self.bisecting, torch.where(hit, self.low, radius), 0.0)
        bisecting = (self.bisecting | hit) & (best - low > TOLERANCE)
        first, size = self._next_block(~bisecting)
        place = torch.arange(signs.shape[1], device=signs.device)
        flip = (place >= first[:, None]) & (place < (first + size)[:, None])
        trial = torch.where(bisecting[:, None], self.trial, signs ^ flip)
        return replace(
            self, signs=signs, radius=best, trial=trial, bisecting=bisecting, low=low, first=first, size=size
        )

    def _next_block(self, ended: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next block where a trial has ended: at the end of an image blocks become half as large."""
        first = torch.where(ended, self.first + self.size, self.first)
        over = first >= self.signs.shape[1]
        return torch.where(over, 0, first), torch.where(over, (self.size + 1) // 2, self.size)


def _begin(natural: Tensor, labels: Tensor, reach: Tensor) -> _State:
    """Return the state before the first query."""
    count, pixels = len(natural), natural[0].numel()
    numbers = torch.arange(count, device=natural.device)
    signs = torch.ones(count, pixels, dtype=torch.bool, device=natural.device)
    return _State(
        rows=numbers,
        labels=labels,
        natural=natural,
        reach=reach,
        signs=signs,
        radius=torch.full_like(reach, torch.inf),
        trial=signs,
        bisecting=torch.zeros_like(numbers, dtype=torch.bool),
        low=torch.zeros_like(reach),
        # Two empty blocks come first: for the image itself, and for the direction without a flip.
        first=torch.full_like(numbers, -2 * pixels),
        size=torch.full_like(numbers, pixels),
    )


def _radius_per_image(eps: float | Tensor, natural: Tensor) -> Tensor:
    """Return ``eps`` as ``(N,)``; refuse one per pixel."""
    count = len(natural)
    if not isinstance(eps, Tensor) or eps.numel() == 1:
        return natural.new_full((count,), float(eps))
    if eps.numel() != count or eps.shape[0] != count or eps.dim() not in (1, natural.dim()):
        raise UserError(
            f"eps has shape {tuple(eps.shape)}, but RayS searches one radius per image: "
            f"give a number or ({count},)."
        )
    return eps.detach().reshape(-1).to(natural)
