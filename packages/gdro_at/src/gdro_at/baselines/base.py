"""What the fairness baselines share: the published start, passes of a batch, validation by units, place in the run."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gdro_at.attacks import TrainingAttack, validation_images
from gdro_at.method import UnitMethod, local_loss
from gdro_at.units import unit_totals
from robust_core.data import Batch, ImageSet, steps_per_epoch
from robust_core.errors import UserNote
from robust_core.losses import accuracy, kl_divergence
from robust_core.training.method import StepContext

__all__ = [
    "Baseline",
    "EpochPlace",
    "Passes",
    "UniformAttack",
    "global_loss",
    "named_figures",
    "passes_of",
    "place_of",
    "present_units",
    "unit_accuracies",
]


@dataclass(frozen=True)
class UniformAttack(TrainingAttack):
    """PGD from a uniform start in +-eps, clipped to [0, 1]; the validation attack of FAT and CFA."""

    def begin(self, images: Tensor, draw: Tensor, eps: float | Tensor | None = None) -> Tensor:
        """Return the starts; the standard normal ``draw`` becomes uniform by its distribution function."""
        del eps
        return (images + self.eps * torch.erf(draw * math.sqrt(0.5))).clamp(*self.clip)


class Passes(NamedTuple):
    """Training logits ``(n, classes)``; ``reference`` is the natural prediction in the KL term."""

    natural: Tensor
    adversarial: Tensor
    reference: Tensor

    def natural_terms(self, labels: Tensor) -> Tensor:
        """Return ``CE(z(x), y)`` of each image ``(n,)``."""
        return F.cross_entropy(self.natural, labels, reduction="none")

    def robust_terms(self) -> Tensor:
        """Return ``KL(p(x) || p(x'))`` of each image ``(n,)``, with gradients through both."""
        return kl_divergence(self.reference, self.adversarial)

    def figures(self, labels: Tensor) -> dict[str, Tensor]:
        """Return what a step logs: unweighted mean terms and accuracies in training mode, detached."""
        return {
            "natural_loss": self.natural_terms(labels).detach().mean(),
            "robust_loss": self.robust_terms().detach().mean(),
            "natural_accuracy": accuracy(self.natural, labels),
            "adversarial_accuracy": accuracy(self.adversarial, labels),
        }


def passes_of(
    model: nn.Module, images: Tensor, adversarial: Tensor, context: StepContext, *, twice: bool = False
) -> Passes:
    """Return the passes natural, adversarial and, ``twice`` as published, natural again.

    The second natural pass has the values of the first; it moves the running statistics once more.
    """
    natural = context.logits(model, images)
    attacked = context.logits(model, adversarial)
    return Passes(natural, attacked, context.logits(model, images) if twice else natural)


def global_loss(total: Tensor, counts: Tensor, batch: Batch, context: StepContext) -> Tensor:
    """Return the loss of this process, whose part of the global loss is ``total``; ``counts`` ``(K,)`` of units.

    A piece of a batch (gradient accumulation) counts for its share of the images: its means are its own.
    """
    return local_loss(total * (counts.sum() / context.global_size), batch, context)


class EpochPlace(NamedTuple):
    """Epochs of the phase before this one (``done``, a begun one included), and epochs of the phase."""

    done: int
    total: int

    def from_share(self, share: float) -> int:
        """Return the epoch, from 1, at which ``share`` of the phase is done, rounded."""
        return max(1, round(share * self.total))


def place_of(context: StepContext) -> EpochPlace | None:
    """Return where an epoch that begins stands in its phase; None for the first, whose length is not known yet."""
    if context.phase_step == 0 or context.epoch == 0:
        return None
    epoch_steps = context.step // context.epoch
    return EpochPlace(-(-context.phase_step // epoch_steps), -(-context.phase_steps // epoch_steps))


def unit_accuracies(logits: Tensor, labels: Tensor, units: Tensor, count: int) -> Tensor:
    """Return the accuracy of each unit, float32 ``(K,)``, 0 for a unit without images."""
    hits, counts = unit_totals([(logits.argmax(dim=1) == labels).float()], units, count)
    return hits[0] / counts.clamp(min=1)


def present_units(units: Tensor, count: int) -> Tensor:
    """Return which units occur, bool ``(K,)``."""
    return torch.bincount(units, minlength=count) > 0


def named_figures(name: str, values: Tensor) -> dict[str, float]:
    """Return the entries of a tensor ``(n,)`` as figures to log: ``name_0``, ``name_1``, ..."""
    return {f"{name}_{index}": value for index, value in enumerate(values.tolist())}


@dataclass(kw_only=True)
class Baseline(UnitMethod):
    """A method with units that attacks the training images by the KL to the natural prediction.

    ``official`` gives the published form: its settings are constants there, and its start is
    ``x + 0.0001 N(0, 1)``, not clipped (golden README, part 2).
    """

    attack: TrainingAttack
    official: bool = False

    @property
    def training_attack(self) -> TrainingAttack:
        """The attack of a step, with the published start in the official form."""
        return self.attack.published() if self.official else self.attack

    def validation_units(self, context: StepContext) -> tuple[ImageSet, Tensor]:
        """Return the validation images and their units ``(N,)``; ``UserError`` if there are none."""
        data = validation_images(context, self.name)
        return data, self.units_of(data)

    def warn_of_one_epoch(self, data: ImageSet, context: StepContext, what: str) -> None:
        """Tell, as its phase begins, that it ends within this epoch, so that ``what`` an epoch gives is never used."""
        last = context.step - context.phase_step + context.phase_steps - 1
        ends = last // steps_per_epoch(len(data), context.global_size) == context.epoch
        if ends and context.processes.is_main:
            warnings.warn(
                f"{self.name}: {what} follow the epoch before, and there is one epoch only, so they stay as they are; "
                "train for two or more.",
                UserNote,
                stacklevel=2,
            )

    def warn_of_unseen(self, data: ImageSet, context: StepContext, kept: str) -> None:
        """Name, in one warning, the units without validation images, and what they ``kept`` (section 0)."""
        seen = present_units(self.validation_units(context)[1], self.units)
        if not context.processes.is_main or bool(seen.all()):
            return
        by_group = self.over == "group" and data.info.groups is not None
        names = (data.info.groups or ()) if by_group else data.info.classes
        unseen = ", ".join(name for name, present in zip(names, seen.tolist(), strict=True) if not present)
        warnings.warn(f"{self.name}: no validation image of {unseen}, {kept}.", UserNote, stacklevel=2)
