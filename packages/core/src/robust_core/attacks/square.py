"""Square Attack (Andriushchenko et al. 2020) in L-inf: random search over squares of the ball's corners."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor, nn

from robust_core.attacks.checks import check_count
from robust_core.attacks.engine import Classifier, in_layout_of
from robust_core.attacks.objectives import Objective
from robust_core.attacks.queries import Part, Proposal, RandomSearch, draws_of
from robust_core.attacks.search import Observer, Standing
from robust_core.attacks.starts import source_of
from robust_core.errors import UserError

__all__ = ["square", "square_side"]

HALVINGS = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)
"""After which of 10,000 queries the share of pixels is halved (Andriushchenko et al. 2020, section 5)."""


def square(
    model: nn.Module | Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    queries: int = 5000,
    p_init: float = 0.8,
    restarts: int = 1,
    loss: str | Objective = "margin",
    early_stop: bool | Standing = True,
    observe: Observer | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return for each image a point that fools the model, else the one with the largest objective.

    Starts from random vertical stripes of ``+-eps``; each query sets one square, in each channel, to the upper
    or the lower end of the ball, and is kept if the objective grows. Needs no gradient.

    Args:
        images: ``(N, C, H, W)``, float32 or float64, in [0, 1].
        eps: L-inf, in pixel units (8/255): a number, ``(N,)``, or broadcastable per pixel.
        queries: forward passes per image and restart, the start's included.
        p_init: the first squares' share of an image's pixels, in (0, 1]; it is halved along the published
            schedule, which is stretched from 10,000 queries to ``queries``.
        restarts: runs from new stripes, for the images that still stand.
        loss: what grows, as for PGD.
        early_stop: images that fool the model leave the batch. False: all run to the end and the largest
            objective decides. Or a function from positions ``(n,)`` to bool, asked before each run and after
            each query: an image is attacked as long as it stands there, and the largest objective decides.
        observe: called with the accepted points, starts included, and the positions ``(n,)`` of their images.
        generator: source of all randomness, on any device; None: a fresh one with seed 0.

    With a function as ``loss``, and ``early_stop`` False or a function, the model may return any tensor
    ``(N, ...)`` instead of logits. Errors as in :func:`robust_core.attacks.pgd`.
    """
    search = RandomSearch(model, images, labels, eps=eps, loss=loss, early_stop=early_stop, observe=observe)
    check_count("queries", queries, 1)
    check_count("restarts", restarts, 1)
    _check_share(p_init)
    if images.dim() != 4:
        raise UserError(
            f"The images have shape {tuple(images.shape)}, but squares need rows and columns: "
            "give images (N, C, H, W)."
        )
    source = source_of(generator)
    for _ in range(restarts):
        search.run(_proposal(source, images, queries, p_init), queries)
    return in_layout_of(search.record.images, images)


def _proposal(source: torch.Generator, images: Tensor, queries: int, p_init: float) -> Proposal:
    """Return what a run asks for: stripes first, then the best point with a square."""
    count, channels, height, width = images.shape
    (stripes,) = draws_of(source, 1, (count, channels, 1, width), images.device)
    squares = draws_of(source, queries - 1, (count, 2 + channels), images.device)

    def propose(index: int, part: Part) -> Tensor:
        if index == 0:
            return torch.where(stripes[part.rows] < 0.5, part.ball.upper, part.ball.lower)
        side = square_side(index, queries, p_init, height, width)
        return _with_square(part, next(squares)[part.rows], side)

    return propose


def square_side(index: int, queries: int, p_init: float, height: int, width: int) -> int:
    """Return the side of the square of query ``index`` (from 1) of ``queries``: ``sqrt(p H W)``, rounded.

    >>> [square_side(index, 10_000, 0.8, 32, 32) for index in (10, 11, 200, 1000, 10_000)]
    [29, 20, 14, 10, 2]
    """
    halvings = sum(index * 10_000 > after * queries for after in HALVINGS)
    side = round(math.sqrt(p_init / 2**halvings * height * width))
    return max(1, min(side, height, width))


def _with_square(part: Part, draw: Tensor, side: int) -> Tensor:
    """Return the best points with one square each; ``draw`` ``(n, 2 + C)``: its place, then its signs."""
    height, width = part.best.shape[2:]
    down = torch.arange(height, device=draw.device) - (draw[:, :1] * (height - side + 1)).floor()
    across = torch.arange(width, device=draw.device) - (draw[:, 1:2] * (width - side + 1)).floor()
    inside = ((down >= 0) & (down < side))[:, None, :, None] & ((across >= 0) & (across < side))[
        :, None, None
    ]
    signs = (draw[:, 2:] < 0.5)[:, :, None, None]
    return torch.where(inside, torch.where(signs, part.ball.upper, part.ball.lower), part.best)


def _check_share(p_init: float) -> None:
    given: Any = p_init
    if isinstance(given, bool) or not isinstance(given, numbers.Real) or not 0 < float(given) <= 1:
        raise UserError(f"p_init is {p_init!r}, expected a share of the pixels in (0, 1], e.g. 0.8.")
