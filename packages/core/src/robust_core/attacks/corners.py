"""The best of many random corners of the ball: what blind search finds, a check on all other attacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust_core.attacks.checks import check_count
from robust_core.attacks.engine import Classifier, in_layout_of
from robust_core.attacks.queries import Part, RandomSearch, draws_of
from robust_core.attacks.search import Observer, Standing
from robust_core.attacks.starts import source_of

__all__ = ["random_corners"]


def random_corners(
    model: nn.Module | Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    draws: int = 1000,
    early_stop: bool | Standing = True,
    observe: Observer | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return for each image its first random corner that fools the model, else that with the largest margin.

    A corner is ``+-eps`` in every pixel and channel, cut to [0, 1]. ``draws``: corners, and forward passes, per
    image. ``observe`` sees each corner that is better than those before. ``early_stop`` and the other
    arguments and errors as in :func:`robust_core.attacks.square`; images of any shape ``(N, ...)``.
    """
    search = RandomSearch(
        model, images, labels, eps=eps, loss="margin", early_stop=early_stop, observe=observe
    )
    check_count("draws", draws, 1)
    signs = draws_of(source_of(generator), draws, tuple(images.shape), images.device)

    def propose(index: int, part: Part) -> Tensor:  # noqa: ARG001
        return torch.where(next(signs)[part.rows] < 0.5, part.ball.upper, part.ball.lower)

    search.run(propose, draws)
    return in_layout_of(search.record.images, images)
