"""CFA, class-wise calibrated fair adversarial training (Wei et al., CVPR 2023): a budget and a beta per unit.

Shapes: ``n`` images, ``K`` units. Epochs of the phase count from 0.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gdro_at.attacks import validation_logits
from gdro_at.baselines.base import (
    Baseline,
    UniformAttack,
    named_figures,
    passes_of,
    place_of,
    present_units,
    unit_accuracies,
)
from gdro_at.method import local_loss
from gdro_at.units import unit_totals
from robust_core.data import Batch, ImageSet
from robust_core.losses import kl_divergence
from robust_core.training.method import StepContext, StepResult

__all__ = [
    "CFA",
    "Budgets",
    "average_weights",
    "cfa_loss",
    "kept_share",
    "official_training_accuracies",
    "training_accuracies",
    "unit_budgets",
]

OFFICIAL_FACTOR = 6.0
OFFICIAL_BEGIN = 5
OFFICIAL_DECAY, OFFICIAL_THRESHOLD = 0.88, 0.25


class Budgets(NamedTuple):
    """``eps`` ``(K,)`` in pixels, and ``robust_shares`` ``(K,)``: the share ``beta_k / (1 + beta_k)`` of the KL."""

    eps: Tensor
    robust_shares: Tensor


def training_accuracies(right: Tensor, seen: Tensor) -> Tensor:
    """Return ``right_k / seen_k`` ``(K,)``; NaN for a unit that was not seen."""
    return right / seen


def official_training_accuracies(right: Tensor, seen: Tensor) -> Tensor:
    """Return ``K right_k / sum_j seen_j`` ``(K,)``, which measures the size of a unit too and may exceed 1."""
    return len(right) * right / seen.sum()


def unit_budgets(
    accuracies: Tensor,
    *,
    eps: float,
    beta: float,
    eps_offset: float = 0.5,
    beta_offset: float = 0.5,
    before: Budgets | None = None,
) -> Budgets:
    """Return ``eps_k = (lambda1 + t_k) eps`` and the share of ``beta_k = (lambda2 + t_k) beta``.

    ``accuracies`` ``(K,)`` are the robust training accuracies ``t_k``; where NaN (a unit that was not seen) its
    budgets stay as they were ``before`` (None: eps and beta). The offsets are the published lambda1 and lambda2
    (fair_baselines, section 6).
    """
    unseen = accuracies.isnan()
    of_eps, of_beta = (torch.where(unseen, 1.0, accuracies + offset) for offset in (eps_offset, beta_offset))
    found = Budgets(of_eps * eps, _share(of_beta * beta))
    if before is None:
        return found
    return Budgets(*(torch.where(unseen, *pair) for pair in zip(before, found, strict=True)))


def _share(beta: Tensor) -> Tensor:
    return beta / (1 + beta)


def cfa_loss(
    natural: Tensor,
    adversarial: Tensor,
    reference: Tensor,
    labels: Tensor,
    shares: Tensor,
    *,
    factor: float = 1.0,
    size: int,
) -> Tensor:
    """Return ``(1/N) sum_i [(1 - b_i) CE_i + factor b_i KL_i]``, the part of these images of a batch of ``size``.

    With ``b_i = beta / (1 + beta)`` of the image's unit, ``shares`` ``(n,)``, and factor 1 this is
    ``[CE + beta KL] / (1 + beta)``; the official form has the factor 6, and a reference that passed separately.
    """
    terms = (1 - shares) * F.cross_entropy(natural, labels, reduction="none")
    return (terms + factor * shares * kl_divergence(reference, adversarial)).sum() / size


def kept_share(worst: float, *, first: bool, threshold: float, decay: float) -> float:
    """Return the share of the averaged network that is kept: all of it below the threshold, none the first time."""
    if worst < threshold:
        return 1.0
    return 0.0 if first else decay


@torch.no_grad()
def average_weights(average: nn.Module, model: nn.Module, keep: float, *, official: bool = False) -> None:
    """Move ``average`` to ``keep average + (1 - keep) model``, running statistics too; 1 changes nothing.

    Integer counters are copied; in the official form they are averaged and cut to an integer.
    """
    if keep == 1.0:
        return
    live = model.state_dict()
    for name, kept in average.state_dict().items():
        now = live[name]
        if kept.is_floating_point():
            kept.copy_(torch.lerp(now, kept, keep))
        else:
            kept.copy_((keep * kept.double() + (1 - keep) * now.double()).trunc() if official else now)


@dataclass(kw_only=True)
class CFA(Baseline):
    """TRADES with a budget per unit that follows its robust training accuracy, and fairness-aware weight averaging.

    From the epoch on before which the share ``begin`` of the phase is done, budgets follow the epoch before. After each
    epoch in which the worst unit reaches ``threshold`` under PGD-10 on the validation images, the network is averaged
    into ``averaged``, which is evaluated in its place. The official form keeps that average to itself, never resets its
    counters, begins after the sixth epoch, multiplies the KL by 6 and passes the natural images three times: the last
    pass serves the clean accuracy that it logs (published after the step, here before it).
    """

    name: str = "CFA"
    beta: float = 6.0
    eps_offset: float = 0.5
    beta_offset: float = 0.5
    begin: float = 10 / 200
    decay: float = 0.85
    threshold: float = 0.2
    budgets: Budgets | None = field(default=None, init=False, repr=False)
    counters: Tensor | None = field(default=None, init=False, repr=False)
    average: nn.Module | None = field(default=None, init=False, repr=False)
    first_averaging: int | None = field(default=None, init=False, repr=False)
    saved_average: dict[str, Tensor] | None = field(default=None, init=False, repr=False)

    def start(self, data: ImageSet, context: StepContext) -> None:
        """Begin with eps and beta for every unit."""
        kept = (
            "whose accuracy counts as 0" if self.official else "which has no say in the averaging of weights"
        )
        self.warn_of_unseen(data, context, kept)
        self.warn_of_one_epoch(data, context, "budgets")
        fresh = torch.ones(self.units, device=data.labels.device)
        self.budgets = Budgets(fresh * self.attack.eps, _share(fresh * self.beta))
        # right under attack, right, and seen; in float64, which counts on beyond 2^24 images
        self.counters = torch.zeros((3, self.units), dtype=torch.float64, device=data.labels.device)

    def refresh(self, data: ImageSet, context: StepContext) -> Mapping[str, float]:
        """Take the budgets from what was counted, and count anew; logs accuracies and budgets."""
        del data
        assert self.counters is not None
        place = place_of(context)
        if place is None:
            return {}
        robust, natural, seen = self.counters.unbind()
        figures: dict[str, float] = {}
        if self.official:
            accuracies = official_training_accuracies(robust, seen)
            figures = named_figures("training_accuracy", official_training_accuracies(natural, seen))
            if place.done > OFFICIAL_BEGIN:
                self.budgets = unit_budgets(accuracies.float(), eps=self.attack.eps, beta=self.beta)
        else:
            accuracies = training_accuracies(robust, seen)
            self.counters = torch.zeros_like(self.counters)
            if place.done >= place.from_share(self.begin):
                self.budgets = unit_budgets(
                    accuracies.float(),
                    eps=self.attack.eps,
                    beta=self.beta,
                    eps_offset=self.eps_offset,
                    beta_offset=self.beta_offset,
                    before=self.budgets,
                )
        assert self.budgets is not None
        known = named_figures("robust_training_accuracy", accuracies.nan_to_num())
        return {**known, **figures, **named_figures("eps", self.budgets.eps)}

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> StepResult:
        """Return the loss; passes in training mode in the order natural, adversarial (official: natural twice more)."""
        assert self.budgets is not None
        self.attach(model)
        units = self.units_of(batch)
        adversarial = self.training_attack(
            batch.images, batch.labels, context, eps=self.budgets.eps[units], step_size=self.attack.step
        )
        passes = passes_of(model, batch.images, adversarial, context, twice=self.official)
        clean = passes.natural
        if self.official:
            with torch.no_grad():
                clean = context.logits(model, batch.images)
        self._count(passes.adversarial, clean, batch.labels, units, context)
        total = cfa_loss(
            *passes,
            batch.labels,
            self.budgets.robust_shares[units],
            factor=OFFICIAL_FACTOR if self.official else 1.0,
            size=context.global_size,
        )
        return StepResult(local_loss(total, batch, context), passes.figures(batch.labels))

    def _count(
        self, adversarial: Tensor, natural: Tensor, labels: Tensor, units: Tensor, context: StepContext
    ) -> None:
        """Add the images of the global batch to the counters."""
        assert self.counters is not None
        right = [(logits.argmax(dim=1) == labels).float() for logits in (adversarial, natural)]
        hits, counts = unit_totals(right, units, self.units, context.processes)
        self.counters = self.counters + torch.cat([hits, counts[None]])

    def end_epoch(self, model: nn.Module, context: StepContext) -> Mapping[str, float]:
        """Average the weights if the worst unit is robust enough; logs its accuracy and the first averaging's epoch."""
        self.attach(model)
        images, units = self.validation_units(context)
        attack = UniformAttack(self.attack.eps, objective="ce")
        logits = validation_logits(images, attack, context).adversarial
        accuracies = unit_accuracies(logits, images.labels, units, self.units)
        if not self.official:
            accuracies = accuracies[present_units(units, self.units)]
        worst = float(accuracies.min())
        keep = kept_share(
            worst,
            first=self.first_averaging is None,
            threshold=OFFICIAL_THRESHOLD if self.official else self.threshold,
            decay=OFFICIAL_DECAY if self.official else self.decay,
        )
        figures = {"worst_validation_unit": worst, "kept_share": keep}
        if keep < 1.0:
            if self.first_averaging is None:
                self.first_averaging = context.epoch
                self._hold(copy.deepcopy(model))
                figures["first_averaging_epoch"] = float(context.epoch)
            assert self.average is not None
            average_weights(self.average, model, keep, official=self.official)
        return figures

    def attach(self, model: nn.Module) -> None:
        """Make the averaged network that a loaded state tells of, shaped as ``model``; nothing without one."""
        if self.saved_average is not None:
            self._hold(copy.deepcopy(model))
            assert self.average is not None
            self.average.load_state_dict(self.saved_average)
            self.saved_average = None

    def _hold(self, network: nn.Module) -> None:
        self.average = network.eval().requires_grad_(False)
        self.averaged = None if self.official else self.average

    def state_dict(self) -> dict[str, Any]:
        """Return budgets, counters and the averaged network."""
        average = self.saved_average if self.average is None else self.average.state_dict()
        return {
            **super().state_dict(),
            "budgets": None if self.budgets is None else tuple(self.budgets),
            "counters": self.counters,
            "average": average,
            "first_averaging": self.first_averaging,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned; the averaged network waits for :meth:`attach`."""
        super().load_state_dict(state)
        self.budgets = None if state["budgets"] is None else Budgets(*state["budgets"])
        self.counters = state["counters"]
        self.saved_average, self.first_averaging = state["average"], state["first_averaging"]
