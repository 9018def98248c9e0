"""FAT, fair robust learning by reweighting and remargining (Xu et al., ICML 2021); not "friendly" adversarial training.

Shapes: ``n`` images, ``K`` units. It starts from a robust network: in a run, its phase follows one of TRADES.
"""

from __future__ import annotations

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
    global_loss,
    named_figures,
    passes_of,
    place_of,
    present_units,
    unit_accuracies,
)
from gdro_at.units import unit_totals
from robust_core.data import Batch, ImageSet
from robust_core.errors import unknown_name
from robust_core.losses import accuracy, kl_divergence
from robust_core.training.method import StepContext, StepResult

__all__ = [
    "FAT",
    "VARIANTS",
    "Multipliers",
    "UnitErrors",
    "fat_loss",
    "official_radius_factors",
    "official_shares",
    "official_update",
    "radius_factors",
    "shares",
    "step_within",
    "unit_errors",
    "update",
]

VARIANTS = ("both", "reweight", "remargin")
OFFICIAL_TAU = (0.1, 0.15)
OFFICIAL_RATE = 0.02
OFFICIAL_MARGINS = (-0.2, 0.4)
LARGEST_SUM = 0.5
RADIUS_FACTORS = (0.98, 3.0)


class UnitErrors(NamedTuple):
    """Natural errors and boundary errors (natural minus robust accuracy): of units ``(K,)``, and of all images."""

    natural: Tensor
    boundary: Tensor
    total_natural: Tensor | float
    total_boundary: Tensor | float


class Multipliers(NamedTuple):
    """What weighs the terms CE (``natural``) and KL (``boundary``) and moves the radii (``margin``); ``(K,)`` each."""

    natural: Tensor
    boundary: Tensor
    margin: Tensor


def unit_errors(
    natural_logits: Tensor, adversarial_logits: Tensor, labels: Tensor, units: Tensor, count: int
) -> UnitErrors:
    """Return the errors of each unit and of all images; those of a unit without images have no meaning."""
    natural, robust = (
        unit_accuracies(logits, labels, units, count) for logits in (natural_logits, adversarial_logits)
    )
    all_natural, all_robust = accuracy(natural_logits, labels), accuracy(adversarial_logits, labels)
    return UnitErrors(1 - natural, natural - robust, 1 - all_natural, all_natural - all_robust)


def _gaps(errors: UnitErrors, tau0: float, tau1: float, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return natural and boundary errors above those of all images by more than tau, 0 for units not ``present``."""
    natural = errors.natural - errors.total_natural - tau0
    boundary = errors.boundary - errors.total_boundary - tau1
    if present is None:
        return natural, boundary
    return natural.masked_fill(~present, 0.0), boundary.masked_fill(~present, 0.0)


def official_update(
    multipliers: Multipliers,
    errors: UnitErrors,
    *,
    rate: float = OFFICIAL_RATE,
    present: Tensor | None = None,
) -> Multipliers:
    """Return the published next multipliers, the first two of which can only rise (golden README, ``fat``).

    The published code fails for a unit without images; here it is not ``present`` (bool ``(K,)``) and stays.
    """
    natural_gap, boundary_gap = _gaps(errors, *OFFICIAL_TAU, present)
    return Multipliers(
        (multipliers.natural + rate / 5 * natural_gap.clamp(min=0)).clamp(min=0),
        (multipliers.boundary + rate / 5 * boundary_gap.clamp(min=0)).clamp(min=0),
        (multipliers.margin + 2 * rate * boundary_gap).clamp(*OFFICIAL_MARGINS),
    )


def update(
    multipliers: Multipliers,
    errors: UnitErrors,
    *,
    rho1: float,
    rho2: float,
    tau0: float,
    tau1: float,
    present: Tensor | None = None,
) -> Multipliers:
    """Return the next multipliers, which rise and fall (fair_baselines, section 5).

    ``l0 <- S(l0 + rho1 g0)``, ``l1 <- S(l1 + 2 rho1 g1)``, ``l2 <- l2 + rho2 g1`` with ``g`` the unit's error minus
    that of all minus tau; S sets negatives to 0 and scales to a sum of at most 0.5. The multipliers of units that are
    not ``present`` (bool ``(K,)``) stay 0.
    """
    natural_gap, boundary_gap = _gaps(errors, tau0, tau1, present)
    return Multipliers(
        _bounded(multipliers.natural + rho1 * natural_gap),
        _bounded(multipliers.boundary + 2 * rho1 * boundary_gap),
        multipliers.margin + rho2 * boundary_gap,
    )


def _bounded(values: Tensor) -> Tensor:
    positive = values.clamp(min=0)
    return positive * (LARGEST_SUM / positive.sum().clamp(min=LARGEST_SUM))


def official_shares(multipliers: Tensor) -> Tensor:
    """Return ``max((K-1)/K (l_k - sum of the others) + 1/K, 0)`` ``(K,)``; all 0 where all multipliers are large."""
    count = len(multipliers)
    others = multipliers.sum() - multipliers
    return ((count - 1) / count * (multipliers - others) + 1 / count).clamp(min=0)


def shares(multipliers: Tensor, present: Tensor | None = None) -> Tensor:
    """Return ``1/K + l_k - mean(l)`` ``(K,)``: positive, of sum 1 if all are ``present``; 1/K for absent units."""
    moved = multipliers - multipliers.mean()
    if present is not None:
        moved = moved.masked_fill(~present, 0.0)
    return 1 / len(multipliers) + moved


def official_radius_factors(margin: Tensor) -> Tensor:
    """Return ``exp(2 l2)`` ``(K,)``, which lies in 0.67 ... 2.2 by the bounds of l2."""
    return torch.exp(2 * margin)


def radius_factors(margin: Tensor) -> Tensor:
    """Return ``clip(exp(2 l2), 0.98, 3)`` ``(K,)``: radii in units of eps."""
    return torch.exp(2 * margin).clamp(*RADIUS_FACTORS)


def step_within(step_size: float, eps: float, factors: Tensor) -> Tensor:
    """Return the published step of each image ``(n,)``: the increment, not the perturbation, is bound by its radius."""
    return (eps * factors).clamp(max=step_size)


def fat_loss(
    natural: Tensor,
    adversarial: Tensor,
    reference: Tensor,
    labels: Tensor,
    natural_shares: Tensor,
    robust_shares: Tensor,
    *,
    beta: float,
    total: Tensor,
) -> Tensor:
    """Return ``sum_i [a_i CE_i + beta b_i KL_i] / total``, the part of these images of the global batch.

    ``a`` and ``b`` ``(n,)`` are the shares of the images' units, ``total`` their sum over all images of the batch.
    """
    costs = natural_shares * F.cross_entropy(natural, labels, reduction="none")
    return (costs + beta * robust_shares * kl_divergence(reference, adversarial)).sum() / total


@dataclass(kw_only=True)
class FAT(Baseline):
    """TRADES whose terms and radii are weighed by the errors of units on the validation images, at each epoch's start.

    ``variant`` is ``both``, ``reweight`` (radii stay eps) or ``remargin`` (terms stay unweighted). ``rho1`` halves
    after each ``halving`` of the phase (40 of 120 epochs). The official form bounds the increment of a step instead of
    the perturbation, so that images may move by steps times the step size, validates with the steps of training, has
    beta 1 and constants of its own, and passes the natural images twice. ``validation_clip`` is the range of the
    attacked validation images (``--clmin``, ``--clmax``).
    """

    name: str = "FAT"
    beta: float = 1.0
    rho1: float = 0.05
    rho2: float = 0.1
    tau0: float = 0.1
    tau1: float = 0.1
    halving: float = 40 / 120
    variant: str = "both"
    validation_clip: tuple[float, float] = (0.0, 1.0)
    multipliers: Multipliers | None = field(default=None, init=False, repr=False)
    seen: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise unknown_name("variant of FAT", self.variant, VARIANTS)

    def start(self, data: ImageSet, context: StepContext) -> None:
        """Begin with multipliers of 0."""
        self.warn_of_unseen(data, context, "whose multipliers stay 0")
        zeros = torch.zeros(self.units, device=data.labels.device)
        self.multipliers = Multipliers(zeros, zeros, zeros)
        self.seen = present_units(self.validation_units(context)[1], self.units)

    def refresh(self, data: ImageSet, context: StepContext) -> Mapping[str, float]:
        """Move the multipliers by the errors on the validation images; logs errors and multipliers."""
        del data
        assert self.multipliers is not None
        images, units = self.validation_units(context)
        steps = self.attack.steps if self.official else 20
        attack = UniformAttack(self.attack.eps, steps=steps, objective="ce", clip=self.validation_clip)
        logits = validation_logits(images, attack, context)
        errors = unit_errors(logits.natural, logits.adversarial, images.labels, units, self.units)
        if self.official:
            moved = official_update(self.multipliers, errors, present=self.seen)
        else:
            moved = update(
                self.multipliers,
                errors,
                rho1=self.rho1 * 0.5 ** self._halvings(context),
                rho2=self.rho2,
                tau0=self.tau0,
                tau1=self.tau1,
                present=self.seen,
            )
        self.multipliers = self._of_variant(moved)
        return {
            **named_figures("natural_error", errors.natural),
            **named_figures("boundary_error", errors.boundary),
            **named_figures("natural_multiplier", self.multipliers.natural),
            **named_figures("boundary_multiplier", self.multipliers.boundary),
            **named_figures("margin_multiplier", self.multipliers.margin),
        }

    def _halvings(self, context: StepContext) -> int:
        place = place_of(context)
        # a little more, as three thirds are not quite one in floating point
        return 0 if place is None else int(place.done / (place.total * self.halving) + 1e-9)

    def _of_variant(self, moved: Multipliers) -> Multipliers:
        nothing = torch.zeros_like(moved.margin)
        if self.variant == "reweight":
            return moved._replace(margin=nothing)
        return moved if self.variant == "both" else Multipliers(nothing, nothing, moved.margin)

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> StepResult:
        """Return the loss; passes in training mode in the order natural, adversarial (official: and natural)."""
        assert self.multipliers is not None
        units = self.units_of(batch)
        of_natural, of_robust, factors = self.unit_weights()
        if self.official:
            within = step_within(self.attack.step, self.attack.eps, factors[units])
            adversarial = self.training_attack(batch.images, batch.labels, context, eps=1.0, step_size=within)
        else:
            radii = self.attack.eps * factors[units]
            adversarial = self.training_attack(batch.images, batch.labels, context, eps=radii)
        passes = passes_of(model, batch.images, adversarial, context, twice=self.official)
        _, counts = unit_totals([], units, self.units, context.processes)
        total = fat_loss(
            *passes,
            batch.labels,
            of_natural[units],
            of_robust[units],
            beta=1.0 if self.official else self.beta,
            total=(counts * (of_natural + of_robust)).sum(),
        )
        return StepResult(global_loss(total, counts, batch, context), passes.figures(batch.labels))

    def unit_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the natural and the robust shares and the radius factors of the units, ``(K,)`` each."""
        assert self.multipliers is not None
        natural, boundary, margin = self.multipliers
        if self.official:
            return official_shares(natural), official_shares(boundary), official_radius_factors(margin)
        return shares(natural, self.seen), shares(boundary, self.seen), radius_factors(margin)

    def state_dict(self) -> dict[str, Any]:
        """Return the multipliers and which units the validation images have."""
        multipliers = None if self.multipliers is None else tuple(self.multipliers)
        return {**super().state_dict(), "multipliers": multipliers, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self.seen = state["seen"]
        self.multipliers = None if state["multipliers"] is None else Multipliers(*state["multipliers"])
