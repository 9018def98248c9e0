"""From the flags to the phases of a run: which method, under which attack, weights and rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gdro_at.attacks import PUBLISHED_NOISE, TrainingAttack
from gdro_at.baselines import BAT, CFA, CGD, DAFA, DFR, FAT, UDR, WAT
from gdro_at.config import GdroConfig
from gdro_at.weighted import GroupWeighted
from gdro_at.weights import OFFICIAL_AXES
from robust_core.data.columns import IMAGENET
from robust_core.training import Method, Phase, Rate

__all__ = ["build_phases", "method_title", "rule_settings", "training_attack"]

PUBLISHED_PGD_NOISE = 0.01
CIFAR_MILESTONES = (76, 91, 101)
"""Epochs, counted from 1, from which the published rate on CIFAR-10 is a tenth, a hundredth, a thousandth."""
_AXES = {
    "weights_sign": "sign",
    "weights_updates": "updates",
    "weights_bound": "bound",
    "weights_absent": "absent",
    "weights_running_mean": "running_mean",
    "weights_adjust": "adjust",
    "adv_scale": "adv_scale",
    "adv_weights": "adv_weights",
}


def training_attack(config: GdroConfig) -> TrainingAttack:
    """Return the attack of training: cross-entropy for ``pgd``, the KL to the natural prediction otherwise."""
    by_loss = config.train_type == "pgd"
    attack = TrainingAttack(
        config.epsilon,
        config.num_steps,
        step_size=config.step_size or None,
        objective="ce" if by_loss else "kl",
        noise=config.random_init,
        clip=(config.clmin, config.clmax) if by_loss else (0.0, 1.0),
    )
    if not config.official:
        return attack
    given = PUBLISHED_PGD_NOISE if config.random_init is None else config.random_init
    return attack.published(given) if by_loss else attack.published()


def rule_settings(config: GdroConfig) -> dict[str, Any]:
    """Return the settings of the group weights' rule, without the training counts."""
    official = config.weights == "official"
    axes = dict(OFFICIAL_AXES) if official else {}
    axes.update({axis: getattr(config, name) for name, axis in _AXES.items() if getattr(config, name)})
    return {
        "weighting": "mean" if not config.robust else "greedy" if config.btl else "exponential",
        "generalization_adjustment": config.adjustments,
        "robust_step_size": config.robust_step_size,
        "use_normalized_loss": config.use_normalized_loss,
        "train_grad": config.train_grad,
        "limit_nat": config.limit_nat,
        "limit_adv": config.limit_adv,
        "limit_eps": config.limit_eps,
        "alpha": config.alpha,
        "minimum_variational_weight": 0.0 if config.official else config.minimum_variational_weight,
        "gamma": config.gamma,
        **axes,
    }


def method_title(config: GdroConfig) -> str:
    """Return the name by which a report calls the method."""
    weighted = config.robust and config.train_type in ("erm", "pgd", "trades")
    if config.train_type == "trades" and config.trades_new:
        return f"GDRO-AT ({config.weights} weights)" if weighted else "TRADES, weighted KL"
    names = {"erm": "ERM", "pgd": "PGD-AT", "trades": "TRADES"}
    title = names.get(config.train_type, config.train_type)
    if weighted:
        title = "Group-DRO" if config.train_type == "erm" else f"{title} under Group-DRO"
    elif config.reweight_groups:
        title = f"group-balanced {title}"
    return f"{title}, last layer anew" if config.is_combine else title


def build_phases(config: GdroConfig, epoch_steps: int) -> list[Phase]:
    """Return natural steps if any, the method (FAT behind TRADES), and the last layer's phase if asked for."""
    steps = config.main_steps or config.epochs * epoch_steps
    rate = Rate(config.schedule, config.lr, CIFAR_MILESTONES if config.schedule == "step" else ())
    constant = Rate("constant", config.lr)
    if config.only_test:
        return [Phase("main", build_method(config), 0, rate)]
    phases = []
    if config.natural_steps:
        natural = _weighted(config, "natural", family="erm", rule={"weighting": "mean"})
        # what natural images do not need is left out, so that the rows of a table share these steps
        natural = replace(natural, attack=TrainingAttack(config.epsilon), beta=1.0, forwards=1)
        phases.append(Phase("natural", natural, config.natural_steps, constant))
    if config.begins_with_trades:
        first = 2 * steps // 3 if config.main_steps else 2 * config.epochs // 3 * epoch_steps
        warm = _weighted(config, "TRADES", family="trades", rule={"weighting": "mean"})
        left = 1 - first / steps
        phases.append(Phase("warm-up", warm, first, replace(rate, ramp=(1.0, left))))
        # one schedule over both phases
        rate = replace(rate, epoch_offset=first // epoch_steps, ramp=(left, 0.0))
        steps -= first
    phases.append(Phase("main", build_method(config), steps, rate))
    if config.is_combine:
        attack = None if config.train_type == "erm" else replace(training_attack(config), objective="ce")
        last = DFR("last layer", "group", attack=attack)
        phases.append(Phase("last layer", last, config.combine_epochs * epoch_steps, constant))
    return [phase for phase in phases if phase.steps]


def build_method(config: GdroConfig) -> Method:
    """Return the method of ``--train-type``."""
    kind, attack = config.train_type, training_attack(config)
    if kind in ("erm", "pgd", "trades"):
        own = kind == "trades" and config.trades_new
        return _weighted(
            config, method_title(config), family=kind, rule=rule_settings(config), own_weights=own
        )
    if kind == "BAT":
        return BAT(kind, attack, config.beta, uniform_term=config.uniform_term, official=config.official)
    if kind.startswith("uni"):
        return _soft(config)
    if kind == "CGD":
        return CGD(
            kind,
            config.unit_kind,
            config.scheduler,
            robust_step_size=config.robust_step_size,
            generalization_adjustment=config.adjustments,
            attack=attack,
            beta=config.beta,
            official=config.official,
            limit_adv=config.limit_adv,
            limit_eps=config.limit_eps,
        )
    common: dict[str, Any] = {
        "over": config.unit_kind,
        "lower_rate": config.scheduler,
        "attack": attack,
        "official": config.official,
    }
    if kind == "FAT":
        return FAT(**common, validation_clip=(config.clmin, config.clmax))
    if kind == "WAT":
        return WAT(**common, beta=config.beta, eta=config.eta)
    return (CFA if kind == "CFA" else DAFA)(**common, beta=config.beta)


def _weighted(
    config: GdroConfig, name: str, *, family: str, rule: Mapping[str, Any], **more: Any
) -> GroupWeighted:
    attack = training_attack(config)
    if family == "trades":
        attack = replace(attack, objective="kl")
    return GroupWeighted(
        name,
        lower_rate=config.scheduler,
        family=family,
        attack=attack,
        rule=rule,
        beta=config.beta,
        hinge_loss=config.hinge,
        forwards=config.natural_forwards,
        batch_size=config.batch_size,
        log_every=config.log_every,
        weight_decay=config.weight_decay,
        normalize=IMAGENET if config.normalizes_before_attack else None,
        **more,
    )


def _soft(config: GdroConfig) -> UDR:
    """Return UDR with the flags that were given; the published code parses and forgets them."""
    alpha = config.step_size or None if config.alpha_ is None else config.alpha_
    given = {"lamda": config.lamda, "lr_tau": config.lr_tau, "tau": config.tau, "alpha": alpha}
    return UDR(
        config.train_type,
        config.train_type,
        config.epsilon,
        steps=config.num_steps,
        start=PUBLISHED_NOISE if config.official else config.random_init,
        beta=config.beta,
        forwards=config.natural_forwards,
        **{name: value for name, value in given.items() if value is not None},
    )
