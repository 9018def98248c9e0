"""ANCRA as a training method: attack, choose negatives, three passes, one loss; and its baselines.

A plain network has no auxiliary logits, so the same method without contrast is TRADES, AT or MART under ANCRA's
attack, and with contrast the ablation "ANC only".
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ancra.attacks import AllLogits, targeted_pgd, untargeted_pgd
from ancra.attention import Outputs, attends
from ancra.losses import exclusion, mart_terms_of, natural_and_robust, pgd_term
from ancra.negatives import FIRST_STRATEGY_EPOCH, Draws, Negatives, pick_negatives
from ancra.published import published_train_mode_pgd
from robust_core.attacks.starts import NORMAL_START_SCALE
from robust_core.data import Batch
from robust_core.errors import UserNote
from robust_core.losses import accuracy
from robust_core.training.distributed import gather_rows
from robust_core.training.method import Method, StepContext, StepResult

__all__ = ["FAMILIES", "MILESTONES", "Ancra", "ChosenNegatives", "NegativeChoice", "choose_negatives"]

FAMILIES = ("pgd", "trades", "mart")
MILESTONES = (75, 90, 100)
"""Epochs from which the published rate is a tenth, a hundredth, a thousandth."""


@dataclass(frozen=True)
class NegativeChoice:
    """Which images an anchor is contrasted with: ``classes`` x ``images`` of them, attacked or natural."""

    strategy: str = "random"
    attacked: bool = True
    classes: int = 1
    images: int = 1


class ChosenNegatives(NamedTuple):
    """The choice for each of ``n`` anchors, and the negatives' images ``(n m, 3, H, W)`` and labels ``(n m,)``."""

    choice: Negatives
    images: Tensor
    labels: Tensor


class _Passes(NamedTuple):
    """The training passes of a step; without contrast no negatives, and AT then makes no natural pass."""

    natural: Outputs | None
    adversarial: Outputs
    negative: Outputs | None


@dataclass
class Ancra(Method):
    """ANCRA-PGD, -TRADES or -MART (``family``), or a baseline of it (ANCRA, section 2.5).

    The loss is natural + ``beta`` robust + ``zeta`` exclusion, each with its auxiliary part weighted by ``cr``
    (``attack_cr`` in the untargeted attack: officially 2 whatever cr is). ``attention_by`` "label" weighs the
    training features by the true class, as published, "predicted" by the predicted one. ``train_mode_attack``
    is the published baselines' attack on the live model in training mode. ``first_epoch`` is the number of the
    run's first epoch (``--restart_epoch``), from which strategies count. Without ``steps`` it
    trains on natural images. ``ramp`` lets the budget of the untargeted
    attack rise linearly from 0 over the phase, without which a small network may not begin to learn.
    """

    name: str
    family: str
    num_classes: int
    eps: float = 8 / 255
    step_size: float = 0.007
    steps: int = 10
    beta: float = 6.0
    zeta: float = 3.0
    alpha: float = 1.0
    cr: float = 2.0
    attack_cr: float = 2.0
    inner_loss: str = "ce"
    attention_by: str = "label"
    train_mode_attack: bool = False
    negatives: NegativeChoice = field(default_factory=NegativeChoice)
    first_epoch: int = 1
    ramp: bool = False
    without_negative: Tensor | None = field(default=None, init=False, repr=False)
    warned: bool = field(default=False, init=False, repr=False)

    def end_epoch(self, model: nn.Module, context: StepContext) -> Mapping[str, float]:
        """Warn, once a run, of anchors that found no negative in the epoch (``metrics.jsonl`` has them all)."""
        del model
        count = 0 if self.without_negative is None else int(self.without_negative)
        if count and not self.warned and context.processes.is_main:
            self.warned = True
            warnings.warn(
                f"{count} images had no image of another class in their batch to be contrasted with; they trained "
                "without contrast (a larger --batch-size helps).",
                UserNote,
                stacklevel=2,
            )
        return {}

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> StepResult:
        """Return the loss of a batch; passes in training mode in the order natural, adversarial, negatives."""
        adversarial = self._attack(model, batch, context)
        found = self._negatives(batch, context) if self.zeta else None
        natural_outputs = self._natural(model, batch, context)
        attacked_outputs = self._outputs(model, adversarial, batch.labels, context)
        negative_outputs = None
        if found is not None:
            negative_outputs = self._outputs(model, found.images, found.labels, context)
        passes = _Passes(natural_outputs, attacked_outputs, negative_outputs)
        # what the true label's own row makes of an image says little about what the network alone would say
        weighted = attends(model) and model.attention != "ones"
        told = "_given_label" if weighted and self.attention_by == "label" else ""
        return self._cost(passes, None if found is None else found.choice, batch.labels, told)

    def _natural(self, model: nn.Module, batch: Batch, context: StepContext) -> Outputs | None:
        """Return the natural pass: none where no term uses it, without gradient where none flows back."""
        used = self.family != "pgd"
        if not used and not self.zeta:
            return None
        with torch.set_grad_enabled(used or self.alpha < 1.0):
            return self._outputs(model, batch.images, batch.labels, context)

    def _outputs(self, model: nn.Module, images: Tensor, labels: Tensor, context: StepContext) -> Outputs:
        if not attends(model):
            return Outputs(context.logits(model, images))
        by = labels if self.attention_by == "label" else None
        found: Outputs = context.call(model, images, attention_labels=by, auxiliary=True)
        return found

    def _attack(self, model: nn.Module, batch: Batch, context: StepContext) -> Tensor:
        if self.steps == 0:
            return batch.images
        eps = self.eps * context.progress if self.ramp else self.eps
        start = batch.images + NORMAL_START_SCALE * context.normal("start", batch.images)
        if self.train_mode_attack:
            return published_train_mode_pgd(
                model,
                batch.images,
                batch.labels,
                start=start,
                eps=eps,
                step_size=self.step_size,
                steps=self.steps,
            )
        with torch.no_grad():
            return untargeted_pgd(
                context.view,
                batch.images,
                batch.labels,
                start=start,
                eps=eps,
                step_size=self.step_size,
                steps=self.steps,
                cr=self.attack_cr,
                inner_loss=self.inner_loss,
            )

    def _negatives(self, batch: Batch, context: StepContext) -> ChosenNegatives:
        return choose_negatives(
            self.negatives,
            batch.images,
            batch.labels,
            context,
            num_classes=self.num_classes,
            eps=self.eps,
            step_size=self.step_size,
            steps=self.steps,
            cr=self.cr,
            first_epoch=self.first_epoch,
        )

    def _cost(self, passes: _Passes, chosen: Negatives | None, labels: Tensor, told: str) -> StepResult:
        natural, adversarial, negative = passes
        figures = _figures(passes, labels, told)
        if self.family == "pgd" or natural is None:
            loss = pgd_term(adversarial, labels, cr=self.cr)
        else:
            terms = natural_and_robust if self.family == "trades" else mart_terms_of
            first, robust = terms(natural, adversarial, labels, cr=self.cr)
            loss = first + self.beta * robust
            figures["natural_loss" if self.family == "trades" else "boosted_loss"] = first.detach()
            figures["robust_loss"] = robust.detach()
        if negative is not None and chosen is not None and natural is not None:
            term = exclusion(natural, negative, chosen, alpha=self.alpha, cr=self.cr)
            loss = loss + self.zeta * term
            alone = ~chosen.found.any(dim=1)
            self.without_negative = alone.sum() + (
                0 if self.without_negative is None else self.without_negative
            )
            figures["exclusion_loss"] = term.detach()
            figures["without_negative"] = alone.float().mean()
            repeats = chosen.indices.shape[1]
            distance = natural.logits.detach().repeat_interleave(repeats, dim=0) - negative.logits.detach()
            figures["an_l2"] = _root_mean_square(distance)
        return StepResult(loss, figures)

    def state_dict(self) -> dict[str, Any]:
        """Return whether the user was warned, and of how many anchors so far."""
        count = 0 if self.without_negative is None else int(self.without_negative)
        return {"without_negative": count, "warned": self.warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.without_negative = torch.tensor(int(state["without_negative"]))
        self.warned = bool(state["warned"])


def choose_negatives(
    choice: NegativeChoice,
    images: Tensor,
    labels: Tensor,
    context: StepContext,
    *,
    num_classes: int,
    eps: float,
    step_size: float,
    steps: int,
    cr: float = 0.0,
    first_epoch: int = 1,
) -> ChosenNegatives:
    """Return the negatives of a batch ``(n, 3, H, W)``, chosen among the global batch's images.

    If so chosen they are attacked towards their anchors' labels, on the context's frozen view.
    """
    with torch.no_grad():
        all_images, all_labels = (gather_rows(rows, context.processes) for rows in (images, labels))
        strategy = choice.strategy if context.epoch + first_epoch >= FIRST_STRATEGY_EPOCH else "random"
        logits = None
        if strategy != "random":
            logits = gather_rows(AllLogits(context.view)(images)[:, 0], context.processes)
        first = _rows_before(labels, context)
        chosen = pick_negatives(
            strategy,
            all_labels,
            logits,
            _draws(choice, images, context),
            num_classes=num_classes,
            rows=slice(first, first + len(images)),
        )
        picked = chosen.indices.flatten()
        others = all_images[picked]
        if choice.attacked:
            repeats = chosen.indices.shape[1]
            others = targeted_pgd(
                context.view,
                others,
                labels.repeat_interleave(repeats),
                start=others + _noise(repeats, images, context),
                eps=eps,
                step_size=step_size,
                steps=steps,
                cr=cr,
            )
    return ChosenNegatives(chosen, others, all_labels[picked])


def _draws(choice: NegativeChoice, images: Tensor, context: StepContext) -> Draws:
    shape = (len(images), choice.classes)
    return Draws(
        context.uniform("negative class", images.new_empty(shape)),
        context.uniform("negative image", images.new_empty((*shape, choice.images))),
    )


def _noise(repeats: int, images: Tensor, context: StepContext) -> Tensor:
    like = images.new_empty((len(images), repeats, *images.shape[1:]))
    return NORMAL_START_SCALE * context.normal("negative start", like).flatten(0, 1)


def _rows_before(labels: Tensor, context: StepContext) -> int:
    """Return how many gathered rows are of processes before this one (reads back only where there are any)."""
    if context.processes.world_size == 1:
        return 0
    ranks = gather_rows(torch.full_like(labels, context.processes.rank), context.processes)
    return int((ranks < context.processes.rank).sum())


def _root_mean_square(differences: Tensor) -> Tensor:
    """Return the root over rows of the mean squared length (published ``ap_l2``, ``an_l2``)."""
    return differences.square().sum(dim=1).mean().sqrt()


def _figures(passes: _Passes, labels: Tensor, told: str) -> dict[str, Tensor]:
    """Return what is logged of the training passes that are made anyway; ``told`` ends the accuracies' names."""
    natural, adversarial = passes.natural, passes.adversarial
    figures = {f"adversarial_accuracy{told}": accuracy(adversarial.logits, labels)}
    if natural is None:
        return figures
    figures[f"natural_accuracy{told}"] = accuracy(natural.logits, labels)
    figures["ap_l2"] = _root_mean_square(natural.logits.detach() - adversarial.logits.detach())
    if natural.auxiliary:
        chosen = torch.stack(
            [logits.detach().argmax(dim=1) for logits in (*natural.auxiliary, natural.logits)]
        )
        figures["blocks_agree"] = (chosen == chosen[0]).all(dim=0).float().mean()
    return figures
