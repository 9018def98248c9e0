"""The fast gradient sign method (Goodfellow et al. 2015)."""

from __future__ import annotations

from torch import Tensor, nn

from robust_core.attacks.engine import Classifier
from robust_core.attacks.objectives import Objective
from robust_core.attacks.pgd import pgd
from robust_core.attacks.search import Observer

__all__ = ["fgsm"]


def fgsm(
    model: nn.Module | Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    targeted: bool = False,
    loss: str | Objective = "ce",
    observe: Observer | None = None,
) -> Tensor:
    """Return the images ``(N, ...)`` after one step of length ``eps`` from the images themselves.

    Arguments and errors as in :func:`robust_core.attacks.pgd`.
    """
    return pgd(
        model,
        images,
        labels,
        eps=eps,
        step_size=eps,
        steps=1,
        norm=norm,
        random_start=False,
        targeted=targeted,
        loss=loss,
        observe=observe,
    )
