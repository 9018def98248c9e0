"""Which given flags of ``run_expt.py`` have no effect on a run, and why: one warning each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gdro_at.config import GdroConfig

__all__ = ["idle_settings"]

_SPELLED = {"alpha_": "alpha_", "epochs": "n-epochs", "num_steps": "attack-iters"}
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
"""Values that the published commands write out, used or not; of them nobody need be warned."""


def idle_settings(config: GdroConfig, given: Mapping[str, Any]) -> list[str]:
    """Return one warning for each given flag that has no effect on this run, unless its value is the default."""
    quiet = [{entry.name: entry.default for entry in fields(config)}, _WRITTEN_OUT]
    conditions = {
        **_ignored(),
        **_of_weights(config),
        **_of_method(config),
        **_of_data(config),
        **_of_run(config),
    }
    return [
        f"warning: --{_SPELLED.get(name, name.replace('_', '-'))} has no effect here: {why}"
        for name, (used, why) in conditions.items()
        if name in given and not used and all(given[name] != values.get(name) for values in quiet)
    ]


def _ignored() -> _Conditions:
    published = ("show_progress", "early_stop", "automatic_adjustment", "l2_norm", "n_classes")
    return {
        **dict.fromkeys(published, (False, "it has no effect officially, and none here")),
        "normalize": (False, "networks normalise by themselves; --pixels official takes that away"),
    }


def _of_weights(config: GdroConfig) -> _Conditions:
    """Return the conditions of the flags of the group weights."""
    kind = config.train_type
    ruled = kind in ("erm", "pgd", "trades")
    weighted = ruled and config.robust
    own = kind == "trades" and config.trades_new
    cgd = kind == "CGD"
    needs = "it needs --robust and erm, pgd or trades"
    bounded = (weighted and config.limit_nat) or (own and config.limit_adv) or (cgd and config.limit_adv)
    natural = ("limit_nat", "train_grad", "btl", "use_normalized_loss")
    axes = ("weights", "weights_updates", "weights_bound", "weights_absent")
    return {
        **dict.fromkeys(natural, (weighted, needs)),
        **dict.fromkeys(axes, (weighted or own, needs)),
        **dict.fromkeys(("weights_running_mean", "weights_adjust"), (weighted, needs)),
        **dict.fromkeys(("weights_sign", "adv_scale", "adv_weights"), (own, "it needs --trades-new")),
        "robust_step_size": (weighted or own or cgd, f"{needs}, or CGD"),
        "generalization_adjustment": (weighted or cgd, f"{needs}, or CGD"),
        "robust": (ruled, f"--train-type {kind} has weights of its own"),
        "trades_new": (kind == "trades", "it is about --train-type trades"),
        "limit_adv": (own or cgd, "it needs --trades-new"),
        "limit_eps": (bounded, "it needs --limit-nat or --limit-adv"),
        "minimum_variational_weight": (
            weighted and config.btl and not config.official,
            "it is about --btl, and --official ignores it",
        ),
        "alpha": (
            weighted and (config.btl or config.scheduler),
            "it is about --btl and --scheduler with --robust",
        ),
        "gamma": (ruled, f"--train-type {kind} logs no group losses"),
        "log_every": (ruled, f"--train-type {kind} writes no rows in training, as published"),
    }


def _of_method(config: GdroConfig) -> _Conditions:
    """Return the conditions of the flags of the method and of its attack."""
    kind = config.train_type
    soft, attacked = kind.startswith("uni"), kind != "erm" or config.is_combine
    clipped = ("pgd" in (kind, config.test_type), "other attacks than pgd keep to [0, 1], as published")
    starts = attacked and (kind == "pgd" or not config.official)
    no_attack = "--train-type erm attacks no image"
    return {
        **dict.fromkeys(
            ("tau", "lr_tau", "lamda", "alpha_"), (soft, "only uni, unitrades and unimart use it")
        ),
        **dict.fromkeys(("clmin", "clmax"), clipped),
        "hinge": (kind in ("erm", "pgd"), "TRADES' natural term is cross-entropy, as published"),
        "beta": (kind not in ("erm", "pgd", "uni"), f"--train-type {kind} has no KL term"),
        "eta": (kind == "WAT", "it is WAT's"),
        "forwards": (kind in ("trades", "FAT") or soft, f"--train-type {kind} has no such passes"),
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
        "imbalance_ratio": (cifar, "it is about CIFAR-10"),
        "val_fraction": (shifted, "it is about -s label_shift_step"),
        "validation": (cifar and not shifted, "these images have a validation split of their own"),
        "fraction": (not shifted, "-s label_shift_step chooses the training images itself"),
        "metadata": (config.dataset == "table", "it is about -d table"),
    }


def _of_run(config: GdroConfig) -> _Conditions:
    """Return the conditions of the flags that say what a run does."""
    trained = not config.only_test
    donated = config.only_test or config.resume_weights
    return {
        "epochs": (not config.main_steps and trained, "--main-steps or --only-test sets the length"),
        "checkpoints": (config.zennit_show, "it is about --zennit-show"),
        "pth_name": (donated, "it is about --only-test and --resume"),
        "pretrained": (not donated, "the weights are those of --pth-name"),
    }
