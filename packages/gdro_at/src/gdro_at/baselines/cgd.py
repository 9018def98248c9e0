"""CGD (Piratla et al. 2022) in the loop: gradients of the units' losses, and the weights that they give.

The rule itself is ``gdro_at.weights.cgd``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gdro_at.attacks import TrainingAttack
from gdro_at.baselines.base import global_loss, passes_of
from gdro_at.method import UnitMethod
from gdro_at.units import sum_over_processes, unit_means, weighted_sum
from gdro_at.weights import GroupRule, RuleState, step
from robust_core.data import Batch, ImageSet
from robust_core.losses import accuracy
from robust_core.training.distributed import Processes
from robust_core.training.method import StepContext, StepResult

__all__ = ["CGD", "chosen_parameters", "unit_gradients"]

_STAGES = ("layer3", "layer4")
_HEADS = ("fc", "linear")


def chosen_parameters(model: nn.Module, *, official: bool = False) -> list[nn.Parameter]:
    """Return the parameters whose gradients are compared: of a ResNet the stages 3 and 4 and the head, else all.

    A head called ``linear`` counts as head, not so ``official`` (fair_baselines, section 3).
    """
    heads = _HEADS[:1] if official else _HEADS
    named = [(name.split("."), value) for name, value in model.named_parameters() if value.requires_grad]
    if not any(part in _STAGES for parts, _ in named for part in parts):
        return [value for _, value in named]
    return [value for parts, value in named if not {*parts}.isdisjoint((*_STAGES, *heads))]


def unit_gradients(
    values: Tensor,
    units: Tensor,
    counts: Tensor,
    parameters: list[nn.Parameter],
    processes: Processes | None = None,
) -> Tensor:
    """Return the gradients ``(K, P)`` of the units' mean values over the global batch, by K backward passes.

    ``values`` ``(n,)`` carry the graph, which is kept; ``units`` int64 ``(n,)``; ``counts`` ``(K,)`` members in the
    global batch. An absent unit's row is 0. The parameters' ``grad`` are not touched.
    """
    members = units == torch.arange(len(counts), device=units.device)[:, None]
    shares = members.to(values.dtype) / counts.clamp(min=1)[:, None].to(values.dtype)
    rows = []
    for share in shares:
        parts = torch.autograd.grad(
            values, parameters, grad_outputs=share, retain_graph=True, materialize_grads=True
        )
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    gradients = torch.stack(rows)
    sum_over_processes(gradients, processes)
    return gradients


@dataclass
class CGD(UnitMethod):
    """CGD on natural images or, with an attack, on ``CE + beta KL``.

    ``robust_step_size`` is eta, ``generalization_adjustment`` C, one value or one per unit. ``official``: the published
    rule; with an attack the KL then has weights of its own as ``--trades_new`` gives them (``limit_adv`` and
    ``limit_eps`` bound them), the natural images pass twice, and the attack has the official start. The authors draw
    images with equal chances of the units.
    """

    robust_step_size: float = 0.05
    generalization_adjustment: tuple[float, ...] = (0.0,)
    attack: TrainingAttack | None = None
    beta: float = 6.0
    official: bool = False
    limit_adv: bool = False
    limit_eps: float = 0.2
    rule: GroupRule | None = field(default=None, init=False, repr=False)
    state: RuleState | None = field(default=None, init=False, repr=False)

    def start(self, data: ImageSet, context: StepContext) -> None:
        """Begin with the rule's first weights."""
        del context
        self.state = RuleState.start(self._rule(), device=data.labels.device)

    def _rule(self) -> GroupRule:
        """Return the rule, made once the training counts are known."""
        if self.rule is None:
            rule = GroupRule(
                training_counts=tuple(self.counts.tolist()),
                weighting="cgd",
                generalization_adjustment=self.generalization_adjustment,
                robust_step_size=self.robust_step_size,
                limit_adv=self.limit_adv,
                limit_eps=self.limit_eps,
            )
            self.rule = rule.official() if self.official else rule
        return self.rule

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> StepResult:
        """Return the weighted loss of the units; the weights move before it is taken, as published."""
        if self.state is None:
            raise RuntimeError(f"{self.name} has not begun an epoch yet")
        rule, units = self._rule(), self.units_of(batch)
        natural, adversarial, figures = self._terms(model, batch, context)
        if adversarial is not None and not self.official:
            natural, adversarial = natural + adversarial, None
        values = [natural] if adversarial is None else [natural, adversarial]
        means = unit_means(values, units, self.units, context.processes)
        counts = means[0].counts
        parameters = chosen_parameters(model, official=self.official)
        gradients = unit_gradients(natural, units, counts, parameters, context.processes)
        found = step(rule, self.state, *means, gradients=gradients)
        self.state = found.state
        weights = found.state.natural_weights
        total = weighted_sum(natural, units, weights, counts)
        if adversarial is not None and found.adversarial_weights is not None:
            total = total + weighted_sum(adversarial, units, found.adversarial_weights, counts)
        figures.update({f"weight_{unit}": weight for unit, weight in enumerate(weights)})
        return StepResult(global_loss(total, counts, batch, context), figures)

    def _terms(
        self, model: nn.Module, batch: Batch, context: StepContext
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Return the natural and the adversarial loss of each image ``(n,)``, and figures; adversarial images first."""
        images, labels = batch.images, batch.labels
        if self.attack is None:
            logits = context.logits(model, images)
            natural = F.cross_entropy(logits, labels, reduction="none")
            return natural, None, {"natural_accuracy": accuracy(logits, labels)}
        attack = self.attack.published() if self.official else self.attack
        passes = passes_of(model, images, attack(images, labels, context), context, twice=self.official)
        return passes.natural_terms(labels), self.beta * passes.robust_terms(), passes.figures(labels)

    def state_dict(self) -> dict[str, Any]:
        """Return the training counts and the weights."""
        return {**super().state_dict(), "rule": None if self.state is None else self.state.to_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        saved, self.rule = state["rule"], None
        self.state = None if saved is None else RuleState.from_dict(saved, self.units, self.counts.device)
