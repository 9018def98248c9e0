"""What ``run_expt.py`` refuses before any data is read, and what it warns of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robust_core.config import expect
from robust_core.errors import UserError

if TYPE_CHECKING:
    from gdro_at.config import GdroConfig

__all__ = ["check_combinations", "check_names", "check_numbers", "idle_settings"]


def check_names(config: GdroConfig) -> None:
    """Refuse data sets that are out of scope and names that the data set needs but did not get."""
    if config.dataset == "MultiNLI":
        raise UserError(
            "-d MultiNLI is text, which is out of scope here (images only); take CUB, CelebA, Covid, CIFAR10, Cifar, "
            "table or shapes."
        )
    if config.dataset == "Skin":
        raise UserError(
            "-d Skin reads a table at a fixed path of its authors' machine; give yours as -d table --metadata FILE.csv "
            "-t y -c group."
        )
    needs_names = config.shift_type == "confounder" and config.dataset in ("CUB", "CelebA", "table")
    for name, letter in (("target_name", "t"), ("confounder_names", "c")):
        if needs_names and not getattr(config, name):
            raise UserError(f"-d {config.dataset} needs --{name.replace('_', '-')} (-{letter}); name it.")
    if config.dataset == "table" and config.metadata is None:
        raise UserError("-d table needs --metadata FILE.csv, the table that lists the images.")
    if config.shift_type == "label_shift_step":
        if config.dataset not in ("CIFAR10", "Cifar"):
            raise UserError(
                f"-s label_shift_step is about CIFAR10, not {config.dataset}; take -s confounder."
            )
        for name in ("minority_fraction", "imbalance_ratio"):
            if getattr(config, name) is None:
                raise UserError(f"-s label_shift_step needs --{name.replace('_', '-')}; give a number.")


def check_numbers(config: GdroConfig) -> None:
    """Refuse numbers out of their range."""
    positive = ("beta", "eta", "limit_eps", "robust_step_size", "gamma")
    for name in positive:
        value = getattr(config, name)
        expect(0.0 <= value < float("inf"), name, value, "a number of 0 or more")
    for name in ("fraction", "alpha"):
        value = getattr(config, name)
        expect(0.0 < value <= 1.0, name, value, "a share above 0, at most 1")
    expect(0.0 < config.val_fraction < 1.0, "val_fraction", config.val_fraction, "a share between 0 and 1")
    expect(config.log_every >= 1, "log_every", config.log_every, "at least 1")
    expect(config.save_step >= 1, "save_step", config.save_step, "at least 1")
    expect(
        config.image_size >= 32 and config.image_size % 32 == 0,
        "image_size",
        config.image_size,
        "a multiple of 32",
    )
    for name in (
        "workers",
        "suite_images",
        "sweep_images",
        "natural_steps",
        "main_steps",
        "class_num",
        "n_classes",
    ):
        expect(getattr(config, name) >= 0, name, getattr(config, name), "0 or more")
    expect(config.clmin < config.clmax, "clmin", config.clmin, f"less than --clmax {config.clmax}")
    if config.imbalance_ratio is not None:
        expect(config.imbalance_ratio >= 1.0, "imbalance_ratio", config.imbalance_ratio, "1 or more")
    if config.minority_fraction is not None:
        expect(
            0.0 <= config.minority_fraction <= 1.0, "minority_fraction", config.minority_fraction, "a share"
        )
    _ = config.adjustments


def check_combinations(config: GdroConfig) -> None:
    """Refuse settings that contradict each other."""
    if config.accumulate > 1:
        raise UserError(
            f"--accumulate {config.accumulate} is not possible: the weights need the group losses of the whole batch "
            "before the first piece; take a smaller --batch-size or more processes."
        )
    if config.train_type == "DAFA" and config.fair_over == "group":
        raise UserError(
            "--fair-over group is not possible with DAFA: it needs a prediction for every unit, and the network "
            "predicts classes, not groups; leave the flag out."
        )
    for name, used in (("only_test", config.only_test), ("resume", config.resume_weights)):
        if used and not config.pth_name:
            what = name.replace("_", "-")
            raise UserError(
                f"--{what} needs the weights of a trained network; name them with --pth-name FILE."
            )
    if config.train_from_scratch and config.pretrained:
        raise UserError("--train-from-scratch and --pretrained contradict each other; leave one out.")
    if config.trades_new and config.train_type != "trades" and config.robust:
        raise UserError(
            f"--trades-new gives the KL term of --train-type trades its own weights, but the type is "
            f"{config.train_type}; take trades, or leave the flag out."
        )
    ruled = config.train_type in ("erm", "pgd", "trades")
    if config.pixels == "official" and config.dataset == "Covid" and not ruled:
        raise UserError(
            f"--pixels official normalises COVID's images before the attack, which --train-type {config.train_type} "
            "does not know; take erm, pgd or trades, or --pixels unit."
        )
    if config.is_combine and config.train_type == "CFA":
        raise UserError(
            "--is-combine trains the last layer of the live network, but CFA evaluates an average of networks; take "
            "another --train-type, or leave the flag out."
        )
    if not config.gpu.isdigit():
        raise UserError(f"--gpu {config.gpu} is not possible; expected the number of one GPU, such as 0.")


def idle_settings(config: GdroConfig, given: Mapping[str, Any]) -> list[str]:
    """Return one warning for each given flag that has no effect on this run."""
    ruled = config.train_type in ("erm", "pgd", "trades")
    weighted = ruled and config.robust
    soft = config.train_type.startswith("uni")
    always = "it has no effect officially, and none here"
    trained = (not config.only_test, "nothing is trained")
    at_defaults = {"clmin": 0.0, "clmax": 1.0, "l2_norm": 0.0}  # what the published commands write out
    conditions: dict[str, tuple[bool, str]] = {
        **dict.fromkeys(
            ("show_progress", "early_stop", "automatic_adjustment", "l2_norm", "n_classes"), (False, always)
        ),
        **dict.fromkeys(
            ("tau", "lr_tau", "lamda", "alpha_"), (soft, "only uni, unitrades and unimart use it")
        ),
        **dict.fromkeys(
            ("limit_nat", "train_grad", "btl", "use_normalized_loss"),
            (weighted, "it needs --robust and erm, pgd or trades"),
        ),
        "robust": (ruled, f"--train-type {config.train_type} has weights of its own"),
        "trades_new": (config.train_type == "trades", "it is about --train-type trades"),
        "limit_adv": (config.train_type == "trades" and config.trades_new, "it needs --trades-new"),
        "minimum_variational_weight": (
            weighted and config.btl and config.weights == "corrected",
            "it is about --btl with --weights corrected",
        ),
        "alpha": (config.btl, "it is about --btl"),
        "hinge": (config.train_type in ("erm", "pgd"), "TRADES' natural term is cross-entropy, as published"),
        "beta": (
            config.train_type not in ("erm", "pgd", "uni"),
            f"--train-type {config.train_type} has no KL term",
        ),
        "eta": (config.train_type == "WAT", "it is WAT's"),
        "fair_over": (
            config.train_type in ("WAT", "CFA", "FAT", "DAFA", "CGD"),
            f"--train-type {config.train_type} has no units",
        ),
        "uniform_term": (config.train_type == "BAT", "it is BAT's"),
        "warm_start": (config.train_type == "FAT", "it is FAT's"),
        "combine_epochs": (config.is_combine, "it is about --is-combine"),
        "epochs": (not config.main_steps and trained[0], "--main-steps or --only-test sets the length"),
        "minority_fraction": (config.shift_type == "label_shift_step", "it is about -s label_shift_step"),
        "val_fraction": (config.dataset in ("CIFAR10", "Cifar"), "it is about CIFAR-10"),
        "metadata": (config.dataset == "table", "it is about -d table"),
        "checkpoints": (config.zennit_show, "it is about --zennit-show"),
        "pth_name": (config.only_test or config.resume_weights, "it is about --only-test and --resume"),
        **dict.fromkeys(
            ("clmin", "clmax"), (config.train_type == "pgd", "its attack keeps to [0, 1], as published")
        ),
    }
    return [
        f"warning: --{name.replace('_', '-')} has no effect here: {why}"
        for name, (used, why) in conditions.items()
        if name in given and not used and given[name] != at_defaults.get(name)
    ]
