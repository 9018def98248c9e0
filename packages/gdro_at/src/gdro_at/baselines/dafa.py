"""DAFA, distance-aware fair adversarial training (Lee et al., ICLR 2024): a weight per class on loss, step and radius.

Shapes: ``n`` images, ``K`` classes. Groups have no weights: the rule needs a probability of every unit for every image.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gdro_at.baselines.base import Baseline, Passes, named_figures, place_of
from gdro_at.method import local_loss
from gdro_at.units import unit_totals
from robust_core.data import Batch, ImageSet
from robust_core.errors import UserError, UserNote
from robust_core.losses import kl_divergence
from robust_core.training.method import StepContext, StepResult

__all__ = ["DAFA", "DAFATerms", "class_weights", "dafa_terms", "mean_probabilities"]

OFFICIAL_LAM = 1.5
OFFICIAL_WARM_UP = 1


class DAFATerms(NamedTuple):
    """``natural`` is weighed by class, ``robust`` (without beta) is not; both scalars."""

    natural: Tensor
    robust: Tensor


def mean_probabilities(sums: Tensor, counts: Tensor) -> Tensor:
    """Return ``S_ij``, the mean probability of class j over images of class i, ``(K, K)``.

    Row i of ``sums`` ``(K, K)`` has the summed probabilities of the images of class i, ``counts`` ``(K,)`` their count;
    the row of a class without images is 0.
    """
    return sums / counts.clamp(min=1)[:, None]


def class_weights(means: Tensor, lam: float, present: Tensor | None = None) -> Tensor:
    """Return ``W_i = 1 + lambda sum_{j != i} sgn_ij S_ij S_jj`` ``(K,)``, ``sgn_ij = 1`` if ``S_ii < S_jj``, else -1.

    Both forms (golden README, ``dafa``; fair_baselines, section 7). A class that is not ``present`` (bool ``(K,)``) has
    weight 1 and moves no other.
    """
    own = means.diagonal()
    signs = torch.where(own[:, None] < own[None, :], 1.0, -1.0).to(means)
    pulls = signs * means * own[None, :]
    pulls = pulls - torch.diag(pulls.diagonal())
    if present is not None:
        pulls = pulls * (present[:, None] & present[None, :])
    return 1 + lam * pulls.sum(dim=1)


def dafa_terms(
    natural: Tensor, adversarial: Tensor, labels: Tensor, weights: Tensor, *, size: int
) -> DAFATerms:
    """Return ``(1/N) sum w_i CE_i`` and ``(1/N) sum KL_i``, the parts of these images of a batch of ``size``.

    Logits ``(n, K)``, ``weights`` ``(n,)`` of the images' classes.
    """
    costs = weights * F.cross_entropy(natural, labels, reduction="none")
    return DAFATerms(costs.sum() / size, kl_divergence(natural, adversarial).sum() / size)


@dataclass(kw_only=True)
class DAFA(Baseline):
    """TRADES, and after the share ``warm_up`` of its epochs with the class weights of the last of them.

    The official form warms up for one epoch with lambda 1.5, and never takes a step: its caller drops the loss, so only
    the running statistics move. Its learning rate is therefore 0 here.
    """

    name: str = "DAFA"
    over: str = "class"
    beta: float = 6.0
    lam: float = 1.0
    warm_up: float = 0.64
    weights: Tensor | None = field(default=None, init=False, repr=False)
    sums: Tensor | None = field(default=None, init=False, repr=False)
    warm: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._stay()

    def _stay(self) -> None:
        if self.official:
            self.rate_factor = 0.0

    def validated(self, figure: float) -> None:
        """Lower the rate on a plateau, unless it is 0."""
        super().validated(figure)
        self._stay()

    def start(self, data: ImageSet, context: StepContext) -> None:
        """Begin with weights of 1; ``UserError`` for groups, and for a lambda that could make a weight negative."""
        if self.over != "class":
            raise UserError(
                f"{self.name} weighs by the probabilities of its units, which a network gives for classes only, not "
                f"for each {self.over}: take --fair-over class."
            )
        if not 0 <= self.lam < 4:
            raise UserError(
                f"{self.name}'s lambda is {self.lam}, expected 0 to below 4: a larger one can make a radius negative."
            )
        if self.official and context.processes.is_main:
            warnings.warn(
                f"{self.name}: the official form never takes a step, so the network stays as it was initialised, up to "
                "its running statistics.",
                UserNote,
                stacklevel=2,
            )
        if not self.official:
            self.warn_of_one_epoch(data, context, "weights")
        device = data.labels.device
        self.weights = torch.ones(self.units, device=device)
        # row i: summed probabilities of the images of class i in this epoch, and last their number
        self.sums = torch.zeros((self.units, self.units + 1), device=device)

    def refresh(self, data: ImageSet, context: StepContext) -> Mapping[str, float]:
        """Weigh the classes once the warm-up is done, by its last epoch; logs the weights."""
        del data
        assert self.sums is not None
        place = place_of(context)
        if self.warm or place is None:
            return {}
        if place.done < (OFFICIAL_WARM_UP if self.official else place.from_share(self.warm_up)):
            self.sums = torch.zeros_like(self.sums)
            return {}
        counts = self.sums[:, -1]
        means = mean_probabilities(self.sums[:, :-1], counts)
        lam = OFFICIAL_LAM if self.official else self.lam
        self.weights, self.warm = class_weights(means, lam, counts > 0), True
        return named_figures("weight", self.weights)

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> StepResult:
        """Return the loss; passes in training mode in the order adversarial, natural (both forms)."""
        assert self.weights is not None
        weights = self.weights[batch.labels]
        adversarial = self.training_attack(
            batch.images,
            batch.labels,
            context,
            eps=weights * self.attack.eps,
            step_size=weights * self.attack.step,
        )
        attacked = context.logits(model, adversarial)
        natural = context.logits(model, batch.images)
        if not self.warm:
            self._collect(attacked, batch.labels, context)
        terms = dafa_terms(natural, attacked, batch.labels, weights, size=context.global_size)
        figures = Passes(natural, attacked, natural).figures(batch.labels)
        return StepResult(local_loss(terms.natural + self.beta * terms.robust, batch, context), figures)

    def _collect(self, logits: Tensor, labels: Tensor, context: StepContext) -> None:
        """Add the adversarial probabilities of the global batch to the sums of their classes."""
        assert self.sums is not None
        columns = list(torch.softmax(logits.detach(), dim=1).unbind(dim=1))
        totals, counts = unit_totals(columns, labels, self.units, context.processes)
        self.sums = self.sums + torch.cat([totals, counts[None]]).T

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, and the sums of the warm-up's present epoch."""
        return {**super().state_dict(), "weights": self.weights, "sums": self.sums, "warm": self.warm}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self.weights, self.sums, self.warm = state["weights"], state["sums"], state["warm"]
        self._stay()
