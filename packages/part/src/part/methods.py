"""PART as a training method: the baseline's attack and loss under a budget per pixel."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from part.masks import MaskRule, StoredMasks, mean_density
from robust_core.data import Batch, ImageSet
from robust_core.errors import UserError
from robust_core.training.method import Method, StepContext, StepResult
from robust_core.training.methods import InnerAttack, OuterLoss

__all__ = ["Part", "StoredBudgets"]


class StoredBudgets:
    """Budgets by batch number from ``weighted_eps_list.npz`` (arrays ``arr_0``, ``arr_1``, ...)."""

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                names = [f"arr_{index}" for index in range(len(archive.files))]
                self.budgets = [torch.from_numpy(archive[name]).float() for name in names]
        except FileNotFoundError:
            raise UserError(
                f"'{path}' is not there: --pre-trained reads budgets from it; leave the flag out."
            ) from None
        except (ValueError, KeyError, OSError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
            raise UserError(
                f"'{path}' holds no budgets: expected float arrays arr_0, arr_1, ... per batch."
            ) from None
        for number, budget in enumerate(self.budgets):
            if not bool(((budget >= 0) & (budget <= 1)).all()):
                raise UserError(
                    f"'{path}' has budgets outside of [0, 1] in arr_{number}; expected budgets of pixels in "
                    "[0, 1], e.g. 8/255."
                )

    def read(self, number: int, count: int, rows: tuple[int, int], image: torch.Size) -> Tensor:
        """Return the budgets of ``rows`` of batch ``number``, which has ``count`` images ``(C, H, W)``."""
        allowed = [(count, *image), (count, 1, *image[1:])]
        if number >= len(self.budgets) or tuple(self.budgets[number].shape) not in allowed:
            have = tuple(self.budgets[number].shape) if number < len(self.budgets) else "nothing"
            raise UserError(
                f"weighted_eps_list.npz has {have} for batch {number}; expected {allowed[0]}: make it with this "
                "batch size and data, or leave --pre-trained out."
            )
        return self.budgets[number][rows[0] : rows[1]]


@dataclass
class Part(Method):
    """PART, PART-T or PART-M: ``attack`` within a budget per pixel, then ``outer`` (PART section 2).

    ``refresh``: ``epoch`` and ``batch`` keep masks for every ``save_weights`` epochs (see :class:`StoredMasks`);
    ``step`` makes them anew for each batch, from one natural pass that also serves the attack. ``budgets``
    replaces computed masks by stored ones (``--pre-trained``).
    """

    name: str
    attack: InnerAttack
    outer: OuterLoss
    rule: MaskRule
    low_eps: float
    refresh: str = "epoch"
    save_weights: int = 1
    batch_size: int = 128
    budgets: StoredBudgets | None = None
    epochs_begun: int = 0
    masks: StoredMasks = field(init=False)
    _steps_per_epoch: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        self.masks = StoredMasks(self.rule, by_batch=self.refresh == "batch")

    def begin_epoch(self, data: ImageSet, context: StepContext) -> Mapping[str, float]:
        """Make the masks of all images where one is due; returns their density."""
        self.epochs_begun += 1
        self._steps_per_epoch = -(-len(data) // self.batch_size)
        due = self.epochs_begun == 1 or self.epochs_begun % self.save_weights == 0
        if self.refresh == "step" or not due:
            return {}
        share = self.masks.refresh(data, context, batch_size=self.batch_size)
        return {"mask_density": share}

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> StepResult:
        """Return the outer loss of the batch and its adversarial images under the pixels' budgets."""
        with torch.no_grad():
            eps, share, natural_logits = self.budget(batch, context)
            adversarial = self.attack(
                batch.images, batch.labels, context, eps=eps, natural_logits=natural_logits
            )
        result = self.outer(model, batch.images, adversarial, batch.labels, context)
        return StepResult(result.loss, {**result.metrics, "mask_density": share})

    def budget(self, batch: Batch, context: StepContext) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the budget per pixel, the mask's density and, where a pass was made, the natural logits."""
        limits = {"eps": self.attack.radius(context), "low_eps": self.low_eps}
        if self.refresh == "step":
            draw = None
            if self.rule.control == "random":
                draw = context.uniform("mask-control", batch.images[:, : self.rule.channels])
            mask, seen = self.rule.masks(context.view, batch.images, batch.labels, draw=draw)
            return self.rule.budget(mask, **limits), mean_density(mask), seen.logits
        number = self._batch_number(context)
        if self.budgets is not None:
            eps = self.budgets.read(number, context.global_size, context.rows, batch.images.shape[1:])
            eps = eps.to(batch.images.device)
            return eps, (eps > self.low_eps * (1 + 1e-6)).float().mean(), None
        mask = self.masks.read(batch, number * self.batch_size + context.rows[0])
        return self.rule.budget(mask, **limits), mean_density(mask), None

    def _batch_number(self, context: StepContext) -> int:
        return context.step % self._steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the masks (packed bits) and the epoch counter."""
        store = self.masks.store
        return {
            "epochs_begun": self.epochs_begun,
            "steps_per_epoch": self._steps_per_epoch,
            "masks": None if store is None else store.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.epochs_begun = int(state["epochs_begun"])
        self._steps_per_epoch = int(state["steps_per_epoch"])
        self.masks.load(state["masks"])
