"""Exponential weights of Group-DRO and GDRO-AT, natural and adversarial, official and corrected."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gdro_at.units import UnitMeans
from gdro_at.weights.projection import moved
from gdro_at.weights.rule import GroupRule, constants
from gdro_at.weights.state import RuleState

__all__ = ["adversarial_update", "natural_update"]


def _mean_with(state: RuleState, losses: Tensor, counts: Tensor) -> Tensor:
    """Return the running mean with this batch included; 0 for a unit that was never seen."""
    total = (state.running_count + counts).clamp(min=1)
    return state.running_count / total * state.running_mean + counts / total * losses


def _normalise_losses(rule: GroupRule, losses: Tensor, members: Tensor) -> Tensor:
    if not rule.use_normalized_loss:
        return losses
    total = torch.where(members, losses, 0).sum()
    return losses / torch.where(total == 0, 1, total)


def _exponents(
    rule: GroupRule, state: RuleState, adjusted: UnitMeans, mean: Tensor, members: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the exponents of the multiplications before the clip and of the last one, without eta.

    Corrected: nothing and e, e the adjusted losses or with WULG their running ``mean``. Published: a + e and a.
    """
    batch = _normalise_losses(rule, adjusted.means, members)
    second = batch
    if rule.train_grad and rule.running_mean == "epoch":
        second = _normalise_losses(rule, mean, members)
    elif rule.train_grad:
        # As published: unit 0 alone decides whether there is a running mean, and normalised losses join others.
        known = state.running_mean[:1] != 0
        second = torch.where(known, _mean_with(state, batch, adjusted.counts), batch)
    if rule.updates == "once":
        return torch.zeros_like(second), second
    return (batch + second if rule.train_grad else batch), batch


@torch.no_grad()
def natural_update(rule: GroupRule, state: RuleState, natural: UnitMeans) -> RuleState:
    """Return the state with the next natural weights q and running mean.

    Corrected (``fair_baselines``, section 2, steps 1 to 3): with ``a_k = L_k + C / sqrt(n_k)`` and e = a, or with WULG
    the mean M of a over the samples of this epoch, ``q <- P(q exp(eta e))``, P the projection on the bounds or the
    normalisation. Official (golden README, "Natural update"): ``q exp(eta a) exp(eta a)``, with WULG
    ``q exp(eta a) exp(eta m) exp(eta a)``, clipped before the last factor.
    """
    fixed = constants(rule, natural.means.dtype, natural.means.device)
    members = rule.movable(natural.counts)
    adjusted = UnitMeans(natural.means + fixed.shift, natural.counts)
    mean = _mean_with(state, adjusted.means, natural.counts)
    before, last = _exponents(rule, state, adjusted, mean, members)
    eta = rule.robust_step_size
    bounds = rule.bounds if rule.limit_nat else None
    weights = moved(state.natural_weights, eta * before, eta * last, members, bounds, rule.bound)
    count = state.running_count + natural.counts
    return replace(state, natural_weights=weights, running_mean=mean, running_count=count)


@torch.no_grad()
def adversarial_update(rule: GroupRule, state: RuleState, adversarial: UnitMeans) -> RuleState:
    """Return the state with the next adversarial weights p.

    Corrected (``fair_baselines``, section 2, step 4): ``p <- P(p exp(+eta R))``. Official (golden README, part 1, step
    5): ``p exp(-eta R)``, clipped, then normalised. Weights that are not p's own leave p as it is.
    """
    if rule.adv_weights != "own":
        return state
    members = rule.movable(adversarial.counts)
    eta = rule.robust_step_size if rule.sign == "plus" else -rule.robust_step_size
    bounds = rule.bounds if rule.limit_adv else None
    exponent = eta * adversarial.means
    weights = moved(
        state.adversarial_weights, exponent, torch.zeros_like(exponent), members, bounds, rule.bound
    )
    return replace(state, adversarial_weights=weights)
