"""One step of a rule: from the group losses of the global batch to weights, loss and the next state."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from gdro_at.units import UnitMeans
from gdro_at.weights.cgd import cgd_weights
from gdro_at.weights.exponential import adversarial_update, natural_update
from gdro_at.weights.greedy import greedy_weights
from gdro_at.weights.rule import GroupRule, constants
from gdro_at.weights.state import RuleState

__all__ = ["RuleStep", "averaged", "step"]


class RuleStep(NamedTuple):
    """What a step gives; nothing in it carries a gradient.

    The loss to descend is ``sum_k natural_weights_k L_k + sum_k adversarial_weights_k R_k`` (see
    ``gdro_at.units.weighted_sum``), or, where ``natural_weights`` is None (not robust), the plain mean of the natural
    loss in place of the first sum. ``adversarial_weights`` include the factor (1, K or 4) and are None without an
    adversarial part. ``shift`` ``(K,)`` is the constant that the official rule adds to L in its loss and log;
    ``actual`` (scalar) is the natural part with it, ``robust_term`` (scalar) the adversarial part.
    """

    state: RuleState
    natural_weights: Tensor | None
    adversarial_weights: Tensor | None
    shift: Tensor
    actual: Tensor
    robust_term: Tensor

    @property
    def loss(self) -> Tensor:
        """The value of the loss, shift included."""
        return self.actual + self.robust_term


@torch.no_grad()
def averaged(rule: GroupRule, state: RuleState, natural: UnitMeans) -> RuleState:
    """Return the state with the next exponential average E: ``E <- (1 - gamma) E + gamma L`` for present units.

    The first loss of a unit is taken whole (golden README, part 1, step 3).
    """
    present = natural.counts > 0
    keep = (1 - rule.gamma * present.to(natural.means.dtype)) * state.seen
    average = keep * state.average + (1 - keep) * natural.means
    return replace(state, average=average, seen=state.seen | present)


def _natural_part(
    rule: GroupRule, state: RuleState, natural: UnitMeans, gradients: Tensor | None
) -> tuple[RuleState, Tensor | None, Tensor]:
    """Return the next state, the natural weights and the shift of the loss."""
    fixed = constants(rule, natural.means.dtype, natural.means.device)
    unshifted = torch.zeros_like(natural.means)
    if rule.weighting == "mean":
        return state, None, unshifted
    if rule.weighting == "greedy":
        weights = greedy_weights(
            state.average + fixed.reference,
            fixed.fractions,
            alpha=rule.alpha,
            minimum_variational_weight=rule.minimum_variational_weight,
        )
        return state, weights, unshifted
    if rule.weighting == "cgd":
        if gradients is None:
            raise ValueError("the weighting cgd needs the gradients of the group losses")
        weights = cgd_weights(rule, state.natural_weights, natural.means, gradients, natural.counts).weights
        return replace(state, natural_weights=weights), weights, unshifted
    state = natural_update(rule, state, natural)
    return state, state.natural_weights, fixed.shift if rule.adjust == "in_place" else unshifted


def _adversarial_part(
    rule: GroupRule, state: RuleState, adversarial: UnitMeans, natural_weights: Tensor | None
) -> tuple[RuleState, Tensor]:
    """Return the next state and the adversarial weights with their factor."""
    state = adversarial_update(rule, state, adversarial)
    weights = state.adversarial_weights
    if rule.adv_weights == "uniform":
        weights = torch.full_like(weights, 1 / rule.units)
    elif rule.adv_weights == "natural":
        weights = state.natural_weights if natural_weights is None else natural_weights
    return state, rule.adversarial_factor * weights


@torch.no_grad()
def step(
    rule: GroupRule,
    state: RuleState,
    natural: UnitMeans,
    adversarial: UnitMeans | None = None,
    *,
    gradients: Tensor | None = None,
) -> RuleStep:
    """Return weights, loss and next state from the unit means of one global batch.

    Golden README, part 1, steps 3 to 5 and 7; ``fair_baselines``, sections 1 to 3.
    ``natural`` holds the means of the natural loss, ``adversarial`` those of the adversarial one where it has weights
    of its own (``--trades_new``); without that, ``natural`` is the sum of both. ``gradients`` ``(K, P)`` of the natural
    means are for ``weighting="cgd"`` alone. Raises ``ValueError`` where they are missing.
    """
    natural = UnitMeans(natural.means.detach(), natural.counts.detach())
    state = averaged(rule, state, natural)
    state, natural_weights, shift = _natural_part(rule, state, natural, gradients)
    if natural_weights is None:
        actual = (natural.means * natural.counts).sum() / natural.counts.sum().clamp(min=1)
    else:
        actual = (natural_weights * (natural.means + shift)).sum()
    if adversarial is None:
        return RuleStep(state, natural_weights, None, shift, actual, torch.zeros_like(actual))
    adversarial = UnitMeans(adversarial.means.detach(), adversarial.counts.detach())
    state, adversarial_weights = _adversarial_part(rule, state, adversarial, natural_weights)
    robust_term = (adversarial_weights * adversarial.means).sum()
    return RuleStep(state, natural_weights, adversarial_weights, shift, actual, robust_term)
