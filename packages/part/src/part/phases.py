"""PART's schedule: natural steps (none as published), the warm-up of the family, then the method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from part.config import PartConfig
from part.masks import MaskRule
from part.methods import Part, StoredBudgets
from robust_core.training import Method, Phase, Rate
from robust_core.training.methods import (
    Adversarial,
    AtLoss,
    InnerAttack,
    MartLoss,
    Natural,
    OuterLoss,
    TradesLoss,
)

__all__ = ["build_phases", "mask_rule"]

BASELINE = {"at": "AT", "trades": "TRADES", "mart": "MART"}


def inner_attack(config: PartConfig, *, warm_up: bool) -> InnerAttack:
    """Return the training attack of the configured family.

    AT starts uniformly in the ball, clipped to [0, 1] but for PART with ``--start unclipped``; TRADES and MART
    start with 0.001 N(0, 1). MART attacks with cross-entropy, TRADES with the KL divergence.
    """
    masked = config.masked and not warm_up
    common: dict[str, Any] = {
        "eps": config.epsilon,
        "step_size": config.step_size,
        "steps": config.num_steps,
        "ramp": warm_up and config.eps_ramp,
    }
    if config.family == "trades":
        return InnerAttack(**common, objective="kl", start="normal")
    if config.family == "mart":
        return InnerAttack(**common, start="normal")
    if config.attack == "mma":
        random = config.rand_init or not masked
        return InnerAttack(**common, kind="mma", start="uniform" if random else "none")
    return InnerAttack(**common, clip_start=not masked or config.start == "clipped")


def outer_loss(config: PartConfig) -> OuterLoss:
    """Return the loss of the configured family."""
    if config.family == "trades":
        return TradesLoss(config.beta, forwards=2 if config.forwards == "two" else 1)
    if config.family == "mart":
        return MartLoss(config.beta)
    return AtLoss()


def mask_rule(config: PartConfig) -> MaskRule:
    """Return how images become masks."""
    return MaskRule(config.cam, config.mask_rule, config.cam_class, config.mask_control)


def main_method(config: PartConfig) -> Method:
    """Return what is trained after the warm-up."""
    attack, outer = inner_attack(config, warm_up=False), outer_loss(config)
    if config.method == "natural":
        return Natural()
    if not config.masked:
        return Adversarial(BASELINE[config.family], attack, outer)
    return Part(
        name=config.method.upper(),
        attack=attack,
        outer=outer,
        rule=mask_rule(config),
        low_eps=config.low_epsilon,
        refresh=config.mask_refresh,
        save_weights=config.save_weights,
        batch_size=config.batch_size,
        budgets=StoredBudgets(Path("weighted_eps_list.npz")) if config.uses_stored_budgets else None,
    )


def warm_up_method(config: PartConfig) -> Method:
    """Return what is trained before the masks: the family's plain method."""
    if config.method == "natural":
        return Natural()
    return Adversarial(BASELINE[config.family], inner_attack(config, warm_up=True), outer_loss(config))


def _rates(config: PartConfig, warm_up_begins: int, main_begins: int) -> tuple[Rate, Rate]:
    """Return the rates of warm-up and main phase, which begin after so many epochs of the run."""
    if config.schedule == "linear":
        return Rate("constant", config.lr), Rate("linear", config.lr)
    milestones = (config.adjust_first, config.adjust_second)
    if config.lr_counter == "restarted":
        return Rate("constant", config.lr), Rate("step", config.lr, milestones)
    return (
        Rate("step", config.lr, milestones, epoch_offset=warm_up_begins),
        Rate("step", config.lr, milestones, epoch_offset=main_begins),
    )


def build_phases(config: PartConfig, epoch_steps: int) -> list[Phase]:
    """Return the phases of a run whose epochs have ``epoch_steps`` steps; phases of no step are left out."""
    warm_steps = config.warm_up_steps or config.warm_up * epoch_steps
    main_steps = config.main_steps or (config.epochs - config.warm_up) * epoch_steps
    warm_rate, main_rate = _rates(
        config, config.natural_steps // epoch_steps, (config.natural_steps + warm_steps) // epoch_steps
    )
    phases = [
        Phase("natural", Natural(), config.natural_steps, Rate("constant", config.lr)),
        Phase("warm-up", warm_up_method(config), warm_steps, warm_rate),
        Phase("main", main_method(config), main_steps, main_rate),
    ]
    return [phase for phase in phases if phase.steps > 0]
