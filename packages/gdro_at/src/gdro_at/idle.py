"""Which given flags of ``run_expt.py`` have no effect on a run, and why: one warning each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from robust_core.config import flag_of, idle_warnings

if TYPE_CHECKING:
    from gdro_at.config import GdroConfig

__all__ = ["idle_settings"]

_SPELLED = {"alpha_": "--alpha_", "epochs": "--n-epochs", "num_steps": "--attack-iters"}
_Conditions = dict[str, tuple[bool, str]]
"""By setting: whether this run uses it, and why not if it does not."""
_WRITTEN_OUT: Mapping[str, Any] = {
    "alpha_": 0.01,
    "generalization_adjustment": "2",
    "lamda": 1.0,
    "lr_tau": 0.0,
    "random_init": 0.0001,
    "tau": 0.01,
}
"""Values that the published commands write out, used or not; where all of these flags are, none is warned of them."""


_TRAINING = (
    *("adv_scale", "adv_weights", "alpha_", "augment_data", "beta", "checkpoint_every", "combine_epochs"),
    *("ema", "epochs", "eta", "forwards", "generalization_adjustment", "lamda", "limit_adv", "log_every"),
    *("log_interval", "lr", "lr_tau", "main_steps", "momentum", "natural_steps", "nesterov", "num_steps"),
    *("random_init", "reweight_groups", "schedule", "scheduler", "selection", "sync_bn", "tau"),
    *("train_precision", "uniform_term", "validation_images", "weights_sign"),
)
"""Settings of training alone: with ``--only-test`` one warning tells of them all."""


def idle_settings(config: GdroConfig, given: Mapping[str, Any]) -> list[str]:
    """Return one warning for each given flag that has no effect on this run, unless its value is the default.

    Flags of training alone share one with ``--only-test``.
    """
    quiet = [{entry.name: entry.default for entry in fields(config)}]
    if given.keys() >= _WRITTEN_OUT.keys():
        quiet.append(dict(_WRITTEN_OUT))
    conditions = {
        **_ignored(),
        **_of_weights(config),
        **_of_method(config),
        **_of_data(config),
        **_of_run(config),
    }
    told = [name for name in given if all(given[name] != values.get(name) for values in quiet)]
    training = [name for name in told if config.only_test and name in _TRAINING]
    lines = idle_warnings(conditions, [name for name in told if name not in training], _flag)
    if training:
        verb = "has" if len(training) == 1 else "have"
        flags = ", ".join(map(_flag, training))
        lines.append(f"warning: {flags} {verb} no effect here: --only-test trains nothing")
    return lines


def _flag(name: str) -> str:
    return _SPELLED.get(name, flag_of(name))


def _ignored() -> _Conditions:
    published = ("show_progress", "early_stop", "automatic_adjustment", "l2_norm", "n_classes")
    return {
        **dict.fromkeys(published, (False, "it has no effect officially, and none here")),
        "normalize": (False, "networks normalise by themselves; --pixels official takes that away"),
    }


def _of_weights(config: GdroConfig) -> _Conditions:
    """Return the conditions of the flags of the group weights."""
    kind, cgd = config.train_type, config.train_type == "CGD"
    ruled = kind in ("erm", "pgd", "trades")
    weighted = ruled and config.robust
    own = kind == "trades" and config.trades_new
    needs = "it needs --robust and erm, pgd or trades"
    # what is multiplied step by step: natural weights, unless the greedy rule sorts; and adversarial weights
    natural = weighted and not config.btl
    why = "--btl sorts the groups by their losses instead" if weighted else needs
    adversarial = own and config.adv_weights in ("", "own")
    taken = f"--adv-weights {config.adv_weights} leaves no adversarial weights of their own"
    why_adversarial = taken if own else "it needs --trades-new"
    bounded = (natural and config.limit_nat) or (
        (adversarial or (cgd and config.official)) and config.limit_adv
    )
    limits = "it needs --limit-nat or --limit-adv, and weights that these bound"
    averaged = natural and config.train_grad
    adjusted = weighted and any(c < 0 if config.btl else c != 0 for c in config.adjustments)
    logged = ruled or config.begins_with_trades or config.natural_steps > 0
    return {
        **dict.fromkeys(
            ("limit_nat", "train_grad", "use_normalized_loss", "weights_updates"), (natural, why)
        ),
        "weights": (natural or own or adjusted, why),
        "weights_absent": (natural or adversarial, taken if own else why),
        "weights_bound": (bounded and not cgd, limits),
        "weights_running_mean": (averaged, why if not natural else "it needs --train-grad"),
        "weights_adjust": (adjusted, "it needs --robust, and a --generalization-adjustment that acts"),
        "weights_sign": (adversarial, why_adversarial),
        **dict.fromkeys(("adv_scale", "adv_weights"), (own, "it needs --trades-new")),
        "btl": (weighted, needs),
        "robust_step_size": (
            natural or adversarial or cgd,
            taken if own else why if weighted else f"{needs}, or CGD",
        ),
        "generalization_adjustment": (weighted or cgd, f"{needs}, or CGD"),
        "robust": (ruled, f"--train-type {kind} has weights of its own"),
        "trades_new": (kind == "trades", "it is about --train-type trades"),
        "limit_adv": (
            adversarial or (cgd and config.official),
            "with CGD it needs --official" if cgd else why_adversarial,
        ),
        "limit_eps": (bounded, "with CGD it needs --official and --limit-adv" if cgd else limits),
        "minimum_variational_weight": (
            weighted and config.btl and not config.official,
            "it is about --btl, and --official ignores it",
        ),
        "alpha": (
            weighted and (config.btl or config.scheduler),
            "it is about --btl and --scheduler with --robust",
        ),
        "gamma": (logged, f"--train-type {kind} logs no group losses"),
        "log_every": (logged, f"--train-type {kind} writes no rows in training, as published"),
    }


def _of_method(config: GdroConfig) -> _Conditions:
    """Return the conditions of the flags of the method and of its attack."""
    kind = config.train_type
    soft, attacked = kind.startswith("uni"), kind != "erm" or config.is_combine
    trained = not config.only_test
    clipped = (
        config.test_type == "pgd" or (trained and kind in ("pgd", "FAT")),
        "other attacks than pgd and FAT's validation keep to [0, 1], as published",
    )
    starts = attacked and (kind == "pgd" or not config.official)
    no_attack = "--train-type erm attacks no image"
    return {
        **dict.fromkeys(
            ("tau", "lr_tau", "lamda", "alpha_"), (soft, "only uni, unitrades and unimart use it")
        ),
        **dict.fromkeys(("clmin", "clmax"), clipped),
        "hinge": (
            config.validates_by_hinge or (trained and config.natural_steps > 0),
            f"--train-type {kind} takes cross-entropy, as published",
        ),
        "beta": (
            config.begins_with_trades if kind == "FAT" else kind not in ("erm", "pgd", "uni"),
            "FAT's own factor is 1, and no TRADES comes before it"
            if kind == "FAT"
            else f"--train-type {kind} has no KL term",
        ),
        "eta": (kind == "WAT", "it is WAT's"),
        "forwards": (
            kind in ("trades", "unitrades") or config.begins_with_trades,
            f"--train-type {kind} has no such passes" + (" behind its TRADES" if kind == "FAT" else ""),
        ),
        "class_num": (kind in ("WAT", "CFA", "FAT"), "it is about WAT, CFA and FAT"),
        "fair_over": (kind in ("WAT", "CFA", "FAT", "DAFA", "CGD"), f"--train-type {kind} has no units"),
        "uniform_term": (kind == "BAT", "it is BAT's"),
        "warm_start": (kind == "FAT", "it is FAT's"),
        "combine_epochs": (config.is_combine, "it is about --is-combine"),
        "num_steps": (attacked, no_attack),
        "random_init": (
            starts,
            no_attack if not attacked else "the official start is a constant but for pgd",
        ),
        "scheduler": (not soft and kind != "BAT", f"--train-type {kind} keeps its rate"),
    }


def _of_data(config: GdroConfig) -> _Conditions:
    """Return the conditions of the flags of the data."""
    cifar = config.dataset in ("CIFAR10", "Cifar")
    shifted = config.shift_type == "label_shift_step"
    files = config.dataset in ("CUB", "CelebA", "Covid", "table")
    of_files = ("image_size", "cache_dir", "workers", "skip_unreadable")
    return {
        **dict.fromkeys(of_files, (files, "it is about folders of images")),
        "root_dir": (files or cifar, "these images are drawn"),
        "minority_fraction": (shifted, "it is about -s label_shift_step"),
        **dict.fromkeys(("imbalance_ratio", "augmentation"), (cifar, "it is about CIFAR-10")),
        "val_fraction": (shifted, "it is about -s label_shift_step"),
        "validation": (cifar and not shifted, "these images have a validation split of their own"),
        "fraction": (not shifted, "-s label_shift_step chooses the training images itself"),
        "metadata": (config.dataset == "table", "it is about -d table"),
    }


def _of_run(config: GdroConfig) -> _Conditions:
    """Return the conditions of the flags that say what a run does."""
    donated = config.only_test or config.resume_weights
    return {
        "epochs": (not config.main_steps, "--main-steps sets the length"),
        "test_start": (config.test_type != "erm", "--test-type erm attacks no image"),
        "checkpoints": (config.zennit_show, "it is about --zennit-show"),
        "pth_name": (donated, "it is about --only-test and --resume"),
        "pretrained": (not donated, "the weights are those of --pth-name"),
    }
