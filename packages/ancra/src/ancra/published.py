"""Attacks as the published scripts run them, kept for comparison; the core's are what judges a network."""

from __future__ import annotations

from torch import Tensor, nn

from robust_core.attacks import pgd
from robust_core.attacks.engine import Classifier, ascend
from robust_core.attacks.objectives import cross_entropy, margin
from robust_core.attacks.search import Observer

__all__ = ["batch_margin", "published_cw", "published_train_mode_pgd"]


def batch_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return values ``(N,)`` that sum to ``-relu(S)``, S the batch's sum of true logit minus best wrong one.

    Once S is not positive the whole batch stands still, so what this attack finds depends on the batch size.
    """
    values = margin(logits, labels)
    return values * (values.detach().sum() < 0)


def published_cw(
    model: nn.Module | Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    start: Tensor,
    eps: float,
    step_size: float,
    steps: int,
    observe: Observer | None = None,
) -> Tensor:
    """Return the published C&W images: :func:`batch_margin` climbed by sign steps from ``start``.

    ``observe`` sees every iterate, as in :func:`robust_core.attacks.pgd`. The core's ``pgd(loss="margin")``
    is the attack image by image, which stands beside it.
    """
    return pgd(
        model,
        images,
        labels,
        start=start,
        eps=eps,
        step_size=step_size,
        steps=steps,
        loss=batch_margin,
        observe=observe,
    )


def published_train_mode_pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    start: Tensor,
    eps: float,
    step_size: float,
    steps: int,
) -> Tensor:
    """Return the published baselines' training images: PGD on the live model in training mode.

    Each step sees the batch's own statistics and moves the running ones; no parameter's gradient is touched.
    Exempt from the rule that an attack leaves no trace: that trace is what is published.
    """
    was_training = model.training
    model.train()
    try:
        return ascend(
            lambda iterate: model(iterate),
            images,
            labels,
            start=start,
            eps=eps,
            step_size=step_size,
            steps=steps,
            objective=cross_entropy,
        )
    finally:
        model.train(was_training)
