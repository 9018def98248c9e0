"""ANCRA's training attacks: both final and auxiliary logits are climbed, on the frozen view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ancra.attention import attends, stacked, unstacked, with_auxiliary
from robust_core.attacks.engine import ascend
from robust_core.attacks.objectives import Negated, Objective, cross_entropy
from robust_core.errors import unknown_name
from robust_core.losses import kl_divergence
from robust_core.models import FrozenView

__all__ = [
    "INNER_LOSSES",
    "AllLogits",
    "combined_cross_entropy",
    "combined_kl_to",
    "targeted_pgd",
    "untargeted_pgd",
]

INNER_LOSSES = ("ce", "kl")


@dataclass(frozen=True)
class AllLogits:
    """A frozen view as a function from images to all logits ``(N, 1 + blocks, K)``, the final ones first.

    ``arguments`` are what a network with attention is asked with; without any, weights are chosen by the predicted
    class, as whenever it is asked without labels.
    """

    view: FrozenView
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, images: Tensor) -> Tensor:
        """Return all logits; those of a network without attention are ``(N, 1, K)``."""
        if not attends(self.view.network):
            logits: Tensor = self.view(images)
            return logits[:, None]
        return stacked(self.view.call(images, auxiliary=True, **self.arguments))


def combined_cross_entropy(cr: float) -> Objective:
    """Return ``CE(f, y) + cr * mean over blocks of CE(a_j, y)`` of each image, from all its logits."""

    def objective(logits: Tensor, labels: Tensor) -> Tensor:
        return with_auxiliary(lambda part: cross_entropy(part, labels), unstacked(logits), cr=cr)

    return objective


def combined_kl_to(natural_logits: Tensor, cr: float) -> Objective:
    """Return ``KL(p_f(x) || p_f) + cr * mean over blocks of the same``, from all natural logits."""
    reference = unstacked(natural_logits.detach())

    def objective(logits: Tensor, labels: Tensor) -> Tensor:
        del labels
        return with_auxiliary(kl_divergence, reference, unstacked(logits), cr=cr)

    return objective


def untargeted_pgd(
    view: FrozenView,
    images: Tensor,
    labels: Tensor,
    *,
    start: Tensor,
    eps: float | Tensor,
    step_size: float,
    steps: int,
    cr: float,
    inner_loss: str = "ce",
) -> Tensor:
    """Return the adversarial images that ANCRA trains on (official ``u_pgd``; with ``kl`` ``u_trades``).

    ``inner_loss`` "ce": the published scripts' cross-entropy on all outputs; "kl": the paper's reading, away
    from the natural prediction, which takes one more pass. ``start`` is ``images + 0.001 N(0, 1)`` in training.
    Raises ``UserError`` for another loss.
    """
    network = AllLogits(view)
    if inner_loss == "ce":
        objective = combined_cross_entropy(cr)
    elif inner_loss == "kl":
        with torch.no_grad():
            reference = network(images)
        objective = combined_kl_to(reference, cr)
    else:
        raise unknown_name("inner loss", inner_loss, INNER_LOSSES)
    return ascend(
        network, images, labels, start=start, eps=eps, step_size=step_size, steps=steps, objective=objective
    )


def targeted_pgd(
    view: FrozenView,
    images: Tensor,
    targets: Tensor,
    *,
    start: Tensor,
    eps: float | Tensor,
    step_size: float,
    steps: int,
    cr: float,
) -> Tensor:
    """Return negatives attacked towards their anchors' labels (official ``t_pgd``)."""
    return ascend(
        AllLogits(view),
        images,
        targets,
        start=start,
        eps=eps,
        step_size=step_size,
        steps=steps,
        objective=Negated(combined_cross_entropy(cr)),
    )
