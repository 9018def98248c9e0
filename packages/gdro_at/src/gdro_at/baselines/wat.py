"""WAT, worst-class adversarial training (Li and Liu, AAAI 2023): Hedge over the units and their average.

Shapes: ``n`` images, ``K`` units; weights and costs have ``K + 1`` entries, the last that of all images together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gdro_at.attacks import validation_logits
from gdro_at.baselines.base import (
    Baseline,
    global_loss,
    named_figures,
    passes_of,
    present_units,
)
from gdro_at.method import local_loss
from gdro_at.units import unit_totals, weighted_sum
from robust_core.data import Batch, ImageSet
from robust_core.losses import kl_divergence
from robust_core.training.method import StepContext, StepResult

__all__ = [
    "WAT",
    "expert_weights",
    "official_validation_accuracies",
    "official_validation_costs",
    "official_wat_loss",
    "validation_costs",
    "wat_loss",
]


def validation_costs(terms: Tensor, units: Tensor, count: int) -> Tensor:
    """Return the mean of ``terms`` ``(n,)`` over each unit and over all, ``(K + 1,)``; 0 for a unit without images."""
    (sums,), counts = unit_totals([terms], units, count)
    return torch.cat([sums / counts.clamp(min=1), terms.mean()[None].to(sums)])


def official_validation_costs(
    terms: Tensor, units: Tensor, count: int, *, batches: int, batch_size: int
) -> Tensor:
    """Return the published costs ``(K + 1,)``: sums over each unit and 1/K of all, times ``K / (batches batch_size)``.

    ``batches`` are those of the validation pass, ``batch_size`` that of training (golden README, ``wat``).
    """
    (sums,), _ = unit_totals([terms], units, count)
    whole = torch.cat([sums, terms.sum()[None].to(sums) / count])
    return whole * (count / (batches * batch_size))


def official_validation_accuracies(logits: Tensor, labels: Tensor, units: Tensor, count: int) -> Tensor:
    """Return what the published log shows ``(K + 1,)``: the accuracy, then per unit the share predicted as its number.

    Only printed: it spoils no weight.
    """
    predicted = logits.argmax(dim=1)
    (hits,), counts = unit_totals([(predicted == units).float()], units, count)
    return torch.cat([(predicted == labels).to(hits).mean()[None], hits / counts.clamp(min=1)])


def expert_weights(costs: Tensor, eta: float, present: Tensor | None = None) -> Tensor:
    """Return ``K softmax(eta costs)`` ``(K + 1,)`` of costs summed over the epochs so far.

    A unit that is not ``present`` (bool ``(K,)``) keeps weight 1; the others then sum to their number.
    """
    if present is None:
        return (len(costs) - 1) * torch.softmax(eta * costs, dim=0)
    plays = torch.cat([present, present.new_ones(1)])
    shares = torch.softmax((eta * costs).masked_fill(~plays, -torch.inf), dim=0)
    return torch.where(plays, present.sum() * shares, 1.0)


def wat_loss(costs: Tensor, units: Tensor, weights: Tensor, *, counts: Tensor, size: int | Tensor) -> Tensor:
    """Return ``(1/K) sum_k w_k m_k(cost) + w_{K+1} mean(cost)``, the part of these images (fair_baselines, section 4).

    ``costs`` ``(n,)`` are CE + beta KL; ``counts`` ``(K,)`` and ``size`` are those of the global batch.
    """
    count = len(weights) - 1
    of_units = weighted_sum(costs, units, weights[:-1] / count, counts)
    return of_units + weights[-1].detach() * costs.sum() / size


def official_wat_loss(
    natural: Tensor,
    robust: Tensor,
    units: Tensor,
    *,
    natural_weights: Tensor,
    boundary_weights: Tensor,
    beta: float,
    size: int,
) -> Tensor:
    """Return the published loss of CE terms and KL terms ``(n,)``, the part of these images of a batch of ``size``.

    ``(sum_i CE_i u_{g_i} + beta sum_i KL_i v_{g_i}) / N + v_{K+1} (mean CE + beta mean KL)``; the last entry of the
    natural weights ``u`` is not used (golden README, ``wat``).
    """
    of_units = (natural * natural_weights[units]).sum() + beta * (robust * boundary_weights[units]).sum()
    whole = natural.sum() + beta * robust.sum()
    return (of_units + boundary_weights[-1] * whole) / size


@dataclass(kw_only=True)
class WAT(Baseline):
    """TRADES whose units and their average are weighed by their summed costs on the validation images.

    The weights move at the beginning of every epoch but the first, by the costs of the epoch before.
    """

    name: str = "WAT"
    beta: float = 6.0
    eta: float = 0.1
    costs: Tensor | None = field(default=None, init=False, repr=False)
    weights: Tensor | None = field(default=None, init=False, repr=False)

    def start(self, data: ImageSet, context: StepContext) -> None:
        """Begin with weights of 1."""
        self.warn_of_unseen(data, context, "whose cost is 0" if self.official else "which keeps weight 1")
        self.warn_of_one_epoch(data, context, "weights")
        device = data.labels.device
        self.costs = torch.zeros(self.units + 1, device=device)
        self.weights = torch.ones(self.units + 1, device=device)

    def refresh(self, data: ImageSet, context: StepContext) -> Mapping[str, float]:
        """Add the costs of the epoch that has ended and weigh anew; logs costs and weights."""
        del data
        if context.phase_step == 0:
            return {}
        assert self.costs is not None
        images, units = self.validation_units(context)
        logits = validation_logits(images, self.training_attack, context)
        natural = F.cross_entropy(logits.natural, images.labels, reduction="none")
        terms = natural + self.beta * kl_divergence(logits.natural, logits.adversarial)
        figures: dict[str, float] = {}
        if self.official:
            size = context.global_size
            cost = official_validation_costs(
                terms, units, self.units, batches=-(-len(images) // size), batch_size=size
            )
            shown = official_validation_accuracies(logits.adversarial, images.labels, units, self.units)
            figures = named_figures("printed_accuracy", shown)
        else:
            cost = validation_costs(terms, units, self.units)
        self.costs = self.costs + cost
        present = None if self.official else present_units(units, self.units)
        self.weights = expert_weights(self.costs, self.eta, present)
        return {**named_figures("cost", cost), **named_figures("weight", self.weights), **figures}

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> StepResult:
        """Return the weighted loss; passes in training mode in the order natural, adversarial (both forms)."""
        assert self.weights is not None
        units = self.units_of(batch)
        adversarial = self.training_attack(batch.images, batch.labels, context)
        passes = passes_of(model, batch.images, adversarial, context)
        natural, robust = passes.natural_terms(batch.labels), passes.robust_terms()
        if self.official:
            total = official_wat_loss(
                natural,
                robust,
                units,
                natural_weights=self.weights,
                boundary_weights=self.weights,
                beta=self.beta,
                size=context.global_size,
            )
            return StepResult(local_loss(total, batch, context), passes.figures(batch.labels))
        _, counts = unit_totals([], units, self.units, context.processes)
        costs = natural + self.beta * robust
        total = wat_loss(costs, units, self.weights, counts=counts, size=counts.sum())
        return StepResult(global_loss(total, counts, batch, context), passes.figures(batch.labels))

    def state_dict(self) -> dict[str, Any]:
        """Return the summed costs and the weights."""
        return {**super().state_dict(), "costs": self.costs, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self.costs, self.weights = state["costs"], state["weights"]
