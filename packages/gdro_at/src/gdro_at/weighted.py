"""ERM, PGD-AT and TRADES under group weights: Group-DRO, GDRO-AT and everything between, one method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gdro_at.attacks import TrainingAttack
from gdro_at.method import UnitMethod, local_loss
from gdro_at.statistics import Statistics, csv_row, log_text, model_norm_sq
from gdro_at.units import UnitMeans, unit_means, weighted_sum
from gdro_at.weights import GroupRule, RuleState, RuleStep, constants, step
from robust_core.data import Batch, ImageSet, steps_per_epoch
from robust_core.losses import accuracy, kl_divergence
from robust_core.training.method import StepContext, StepResult

__all__ = ["GroupWeighted", "hinge", "normalized"]


def hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``max(0, 1 - s (z_1 - z_0))`` of each image ``(n,)``, s = +1 for label 1 and -1 for label 0."""
    sign = 2.0 * labels.to(logits.dtype) - 1.0
    return (1.0 - sign * (logits[:, 1] - logits[:, 0])).clamp(min=0.0)


def normalized(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return ``(images - mean) / std`` per channel, for images ``(n, 3, H, W)`` in [0, 1]."""
    shape = (1, -1, 1, 1)
    return (images - images.new_tensor(mean).view(shape)) / images.new_tensor(std).view(shape)


class _Terms(NamedTuple):
    """Per-image losses ``(n,)``: the natural (or only) one, and the adversarial one where it has its own weights."""

    natural: Tensor
    adversarial: Tensor | None
    logits: Tensor
    figures: dict[str, Tensor]


@dataclass
class GroupWeighted(UnitMethod):
    """The loss ``sum_g q_g L_g + c sum_g p_g R_g`` with the weights of a :class:`GroupRule` (GDRO-AT, section 2).

    ``family`` is ``erm`` (L natural), ``pgd`` (L of the attacked images) or ``trades`` (L natural, R = beta KL;
    ``own_weights`` off: L + R as one loss). ``rule`` are the rule's settings without the training counts.
    ``normalize`` (mean, std) is applied before the attack, as published for COVID (``--pixels official``).
    ``forwards`` 2 lets the natural images of TRADES pass twice, as published. Every ``log_every`` batches and at
    the end of an epoch the published statistics become a record, and start anew; ``batch_size`` is that of whole
    batches (0: of the first one).
    """

    family: str = "trades"
    attack: TrainingAttack = field(default_factory=lambda: TrainingAttack(8 / 255))
    rule: Mapping[str, Any] = field(default_factory=dict)
    own_weights: bool = False
    beta: float = 6.0
    hinge_loss: bool = False
    forwards: int = 1
    batch_size: int = 0
    log_every: int = 2000
    weight_decay: float = 0.0
    normalize: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    group_rule: GroupRule | None = field(default=None, init=False, repr=False)
    state: RuleState | None = field(default=None, init=False, repr=False)
    statistics: Statistics | None = field(default=None, init=False, repr=False)
    epoch_steps: int = field(default=1, init=False, repr=False)
    names: tuple[str, ...] = field(default=(), init=False, repr=False)
    _due: tuple[int, int] | None = field(default=None, init=False, repr=False)
    _norm_sq: nn.Module | None = field(default=None, init=False, repr=False)

    def start(self, data: ImageSet, context: StepContext) -> None:
        """Begin with equal weights and empty statistics."""
        self.group_rule = self._rule()
        device = data.labels.device
        self.state = RuleState.start(self.group_rule, device=device)
        self.statistics = Statistics.start(self.units, device=device)
        self.epoch_steps = steps_per_epoch(len(data), self.batch_size or context.global_size)
        known = data.info.groups if self.over == "group" and data.info.groups else data.info.classes
        self.names = tuple(known)

    def _rule(self) -> GroupRule:
        return GroupRule(training_counts=tuple(self.counts.tolist()), **self.rule)

    def refresh(self, data: ImageSet, context: StepContext) -> Mapping[str, float]:
        """Forget the running means that belong to an epoch."""
        del data, context
        rule, state, _ = self._live()
        if rule.running_mean == "epoch":
            self.state = state.reset()
        return {}

    def _live(self) -> tuple[GroupRule, RuleState, Statistics]:
        if self.group_rule is None or self.state is None or self.statistics is None:
            raise RuntimeError(f"{self.name} has not begun an epoch yet")
        return self.group_rule, self.state, self.statistics

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> StepResult:
        """Return the weighted loss; passes in the published order natural, adversarial(, natural)."""
        rule, state, statistics = self._live()
        units = self.units_of(batch)
        if self.normalize is not None:
            batch = replace(batch, images=normalized(batch.images, *self.normalize))
        terms = self._terms(model, batch, context)
        hits = (terms.logits.argmax(dim=1) == batch.labels).to(terms.natural.dtype)
        values = (
            [terms.natural, hits] if terms.adversarial is None else [terms.natural, hits, terms.adversarial]
        )
        natural, right, *others = unit_means(values, units, self.units, context.processes)
        taken = step(rule, state, natural, others[0] if others else None)
        self.state = taken.state
        used = UnitMeans(natural.means + taken.shift, natural.counts)
        self.statistics = statistics.updated(used, right.means, taken.natural_weights, taken.actual)
        self._note_due(context, model)
        total = self._total(terms, taken, units, natural.counts, len(batch) / context.global_size)
        figures = {**terms.figures, "worst_group_loss": _worst(natural)}
        return StepResult(local_loss(total, batch, context), figures)

    def _terms(self, model: nn.Module, batch: Batch, context: StepContext) -> _Terms:
        """Return the per-image losses of one batch."""
        images, labels = batch.images, batch.labels
        if self.family == "erm":
            logits = context.logits(model, images)
            return _Terms(
                self._fit(logits, labels), None, logits, {"natural_accuracy": accuracy(logits, labels)}
            )
        adversarial = self.attack(images, labels, context)
        if self.family == "pgd":
            logits = context.logits(model, adversarial)
            figures = {"adversarial_accuracy": accuracy(logits, labels)}
            return _Terms(self._fit(logits, labels), None, logits, figures)
        logits = context.logits(model, images)
        attacked = context.logits(model, adversarial)
        reference = logits if self.forwards == 1 else context.logits(model, images)
        natural = F.cross_entropy(logits, labels, reduction="none")
        robust = self.beta * kl_divergence(reference, attacked)
        figures = {
            "natural_loss": natural.detach().mean(),
            "robust_loss": robust.detach().mean(),
            "natural_accuracy": accuracy(logits, labels),
            "adversarial_accuracy": accuracy(attacked, labels),
        }
        if self.own_weights:
            return _Terms(natural, robust, logits, figures)
        return _Terms(natural + robust, None, logits, figures)

    def _fit(self, logits: Tensor, labels: Tensor) -> Tensor:
        return hinge(logits, labels) if self.hinge_loss else F.cross_entropy(logits, labels, reduction="none")

    def _total(self, terms: _Terms, taken: RuleStep, units: Tensor, counts: Tensor, share: float) -> Tensor:
        """Return this process's part of the global loss; the official shift is a constant, shared by size."""
        if taken.natural_weights is None:
            total = terms.natural.sum() / counts.sum().clamp(min=1)
        else:
            total = weighted_sum(terms.natural, units, taken.natural_weights, counts)
            total = total + share * (taken.natural_weights * taken.shift).sum()
        if terms.adversarial is not None and taken.adversarial_weights is not None:
            total = total + weighted_sum(terms.adversarial, units, taken.adversarial_weights, counts)
        return total

    def _note_due(self, context: StepContext, model: nn.Module) -> None:
        """Remember whether the statistics are to be told after this step."""
        batch = context.step % self.epoch_steps
        ends = batch + 1 == self.epoch_steps or context.phase_step + 1 == context.phase_steps
        due = ends or (batch + 1) % self.log_every == 0
        self._due = (context.epoch, batch) if due else None
        self._norm_sq = model if due else None

    def records(self) -> list[dict[str, Any]]:
        """Return the published log's row and text where they are due; the statistics then start anew."""
        if self._due is None or self._norm_sq is None:
            return []
        rule, state, statistics = self._live()
        epoch, batch = self._due
        norm = model_norm_sq(self._norm_sq.parameters())
        row = csv_row(epoch, batch, statistics, state.average, norm_sq=norm, weight_decay=self.weight_decay)
        fixed = constants(rule, state.average.dtype, state.average.device)
        text = log_text(statistics, state, state.average + fixed.reference, self.names)
        weights = {
            "natural_weights": state.natural_weights.tolist(),
            "adversarial_weights": state.adversarial_weights.tolist(),
        }
        self._due, self._norm_sq = None, None
        self.statistics = Statistics.start(self.units, device=statistics.loss.device)
        if rule.running_mean == "log":
            self.state = state.reset()
        return [{"kind": "groups", "row": row, "text": text, **weights}]

    def state_dict(self) -> dict[str, Any]:
        """Return weights, running means and statistics."""
        _, state, statistics = self._live()
        return {
            **super().state_dict(),
            "epoch_steps": self.epoch_steps,
            "names": list(self.names),
            "state": state.to_dict(),
            "statistics": statistics.to_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self.group_rule = self._rule()
        device = self.counts.device
        self.epoch_steps = int(state["epoch_steps"])
        self.names = tuple(state["names"])
        self.state = RuleState.from_dict(state["state"], self.units, device)
        self.statistics = Statistics.from_dict(state["statistics"], self.units, device)


def _worst(natural: UnitMeans) -> Tensor:
    """Return the largest loss of a group of the batch."""
    return torch.where(natural.counts > 0, natural.means, -torch.inf).max()
