"""Adversarial training as attack and loss: natural, AT (Madry et al. 2018), TRADES (2019), MART (2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from robust_core.data import Batch
from robust_core.losses import accuracy, cross_entropy, mart_terms, trades_terms
from robust_core.training.method import Method, StepContext, StepResult
from robust_core.training.methods.inner import InnerAttack

__all__ = ["Adversarial", "AtLoss", "MartLoss", "Natural", "OuterLoss", "TradesLoss"]


class OuterLoss(Protocol):
    """What a pair of natural and adversarial images costs the live model."""

    def __call__(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, context: StepContext
    ) -> StepResult:
        """Return the loss (mean over the batch) and figures to log."""
        ...


@dataclass(frozen=True)
class AtLoss:
    """Cross-entropy of the adversarial images."""

    def __call__(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, context: StepContext
    ) -> StepResult:
        """Return the loss from one forward pass."""
        del images
        logits = context.logits(model, adversarial)
        return StepResult(cross_entropy(logits, labels), {"adversarial_accuracy": accuracy(logits, labels)})


@dataclass(frozen=True)
class TradesLoss:
    """``CE(natural) + beta * KL(natural || adversarial)``.

    ``forwards`` is 1, or 2 as published: the natural images then pass twice, which changes nothing but the
    running statistics (they move three times a step).
    """

    beta: float = 6.0
    forwards: int = 1

    def __call__(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, context: StepContext
    ) -> StepResult:
        """Return the loss; passes in the published order natural, adversarial(, natural)."""
        natural_logits = context.logits(model, images)
        adversarial_logits = context.logits(model, adversarial)
        reference = natural_logits if self.forwards == 1 else context.logits(model, images)
        robust = trades_terms(reference, adversarial_logits, labels).robust
        natural = cross_entropy(natural_logits, labels)
        return StepResult(
            natural + self.beta * robust,
            {
                "natural_loss": natural.detach(),
                "robust_loss": robust.detach(),
                "natural_accuracy": accuracy(natural_logits, labels),
                "adversarial_accuracy": accuracy(adversarial_logits, labels),
            },
        )


@dataclass(frozen=True)
class MartLoss:
    """Boosted cross-entropy of the adversarial images and the misclassification-weighted KL (Wang et al. 2020)."""

    beta: float = 6.0

    def __call__(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, context: StepContext
    ) -> StepResult:
        """Return the loss; passes in the published order natural, adversarial."""
        natural_logits = context.logits(model, images)
        adversarial_logits = context.logits(model, adversarial)
        terms = mart_terms(natural_logits, adversarial_logits, labels)
        boosted = terms.cross_entropy + terms.margin
        return StepResult(
            boosted + self.beta * terms.robust,
            {
                "boosted_loss": boosted.detach(),
                "robust_loss": terms.robust.detach(),
                "natural_accuracy": accuracy(natural_logits, labels),
                "adversarial_accuracy": accuracy(adversarial_logits, labels),
            },
        )


@dataclass
class Natural(Method):
    """Training on natural images."""

    name: str = "natural"

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> StepResult:
        """Return the cross-entropy of the natural images."""
        logits = context.logits(model, batch.images)
        loss = cross_entropy(logits, batch.labels)
        return StepResult(loss, {"natural_accuracy": accuracy(logits, batch.labels)})


@dataclass
class Adversarial(Method):
    """An inner attack on the frozen view and an outer loss on the live model."""

    name: str
    attack: InnerAttack
    outer: OuterLoss

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> StepResult:
        """Return the outer loss of the batch and its adversarial images."""
        with torch.no_grad():
            adversarial = self.attack(batch.images, batch.labels, context)
        return self.outer(model, batch.images, adversarial, batch.labels, context)
