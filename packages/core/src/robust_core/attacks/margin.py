"""PGD on the margin of the logits, often called the C&W-loss attack (Carlini and Wagner 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust_core.attacks.engine import Classifier
from robust_core.attacks.pgd import pgd
from robust_core.attacks.search import Observer

__all__ = ["margin_pgd"]


def margin_pgd(
    model: nn.Module | Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    step_size: float | Tensor,
    steps: int,
    norm: str = "linf",
    random_start: str | bool = "uniform",
    start: Tensor | None = None,
    restarts: int = 1,
    targeted: bool = False,
    keep: str = "last",
    early_stop: bool = False,
    observe: Observer | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return images ``(N, ...)`` that raise ``max_{k != y} z_k - z_y``, not cut off at any confidence.

    Arguments and errors as in :func:`robust_core.attacks.pgd`.
    """
    return pgd(
        model,
        images,
        labels,
        eps=eps,
        step_size=step_size,
        steps=steps,
        norm=norm,
        random_start=random_start,
        start=start,
        restarts=restarts,
        targeted=targeted,
        loss="margin",
        keep=keep,
        early_stop=early_stop,
        observe=observe,
        generator=generator,
    )
