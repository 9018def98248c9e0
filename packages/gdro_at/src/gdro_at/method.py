"""What every method of ``run_expt.py`` is: per-image terms of a batch, weighed by units (groups or classes)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from gdro_at.plateau import Plateau
from robust_core.data import Batch, ImageSet
from robust_core.errors import UserError
from robust_core.training.method import Method, StepContext

__all__ = ["UnitMethod", "local_loss"]


def local_loss(total: Tensor, batch: Batch, context: StepContext) -> Tensor:
    """Return this process's part ``total`` of the global batch's loss in the scale that the loop expects.

    The loop takes the loss of a process as a mean over its images and weighs it by its share of the global batch; one
    that all processes have whole, it divides by their number.
    """
    return total * (context.global_size / len(batch))


@dataclass
class UnitMethod(Method):
    """A method whose weights belong to units: ``over`` is ``group`` (the default) or ``class``.

    ``lower_rate`` lowers the learning rate on a plateau of the validation loss (``--scheduler``).
    The number of units and their training counts are known when the first epoch begins, and are part of the state.
    """

    name: str
    over: str = "group"
    lower_rate: bool = False
    unit_counts: Tensor | None = field(default=None, init=False, repr=False)
    plateau: Plateau = field(default_factory=Plateau, init=False, repr=False)

    def __post_init__(self) -> None:
        self.watched = "validation_loss" if self.lower_rate else None

    def validated(self, figure: float) -> None:
        """Lower the rate where the validation loss no longer falls."""
        self.plateau = self.plateau.after(figure)
        self.rate_factor = self.plateau.factor

    def begin_epoch(self, data: ImageSet, context: StepContext) -> Mapping[str, float]:
        """Count the units of the training images at the first epoch; what an epoch needs is :meth:`refresh`'s."""
        if self.unit_counts is None:
            units, count = self.units_of(data), self.number_of_units(data)
            self.unit_counts = torch.bincount(units, minlength=count).to(torch.float32)
            self.start(data, context)
        return self.refresh(data, context)

    def start(self, data: ImageSet, context: StepContext) -> None:
        """Make what depends on the number of units; called once, before the first :meth:`refresh`."""
        del data, context

    def refresh(self, data: ImageSet, context: StepContext) -> Mapping[str, float]:
        """Act at the beginning of an epoch (or of the phase); returns figures to log."""
        del data, context
        return {}

    @property
    def units(self) -> int:
        """The number of units."""
        return len(self.counts)

    @property
    def counts(self) -> Tensor:
        """Training images of each unit, float32 ``(K,)``."""
        if self.unit_counts is None:
            raise RuntimeError(f"{self.name} has not begun an epoch yet")
        return self.unit_counts

    def units_of(self, part: Batch | ImageSet) -> Tensor:
        """Return the unit of each image, int64 ``(n,)``; ``UserError`` for data without groups."""
        if self.over == "class":
            return part.labels
        if part.groups is None:
            raise UserError(
                f"{self.name} weighs groups, but the data has none: take data with groups, or --fair-over class."
            )
        return part.groups

    def number_of_units(self, data: ImageSet) -> int:
        """Return how many units the data set has, with or without images."""
        if self.over == "class" or data.info.groups is None:
            return data.info.num_classes
        return len(data.info.groups)

    def state_dict(self) -> dict[str, Any]:
        """Return the training counts and the rate's state; methods add their own."""
        return {"unit_counts": self.unit_counts, "plateau": asdict(self.plateau)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.unit_counts = state["unit_counts"]
        self.plateau = Plateau(**state["plateau"])
        self.rate_factor = self.plateau.factor
