"""What ``run_expt.py`` refuses before any data is read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from robust_core.config import expect, flag_of
from robust_core.errors import UserError

if TYPE_CHECKING:
    from gdro_at.config import GdroConfig

__all__ = ["check_combinations", "check_names", "check_numbers"]


def check_names(config: GdroConfig) -> None:
    """Refuse data sets that are out of scope and names that the data set needs but did not get."""
    if config.dataset == "MultiNLI":
        raise UserError(
            "-d MultiNLI is text, which is out of scope here (images only); take CUB, CelebA, Covid, CIFAR10, Cifar, "
            "table or shapes."
        )
    if config.dataset == "Skin":
        raise UserError(
            "-d Skin reads a table and images at fixed paths of its authors' machine; give yours as -d table "
            "--metadata FILE.csv -t y -c group, with file names relative to --root-dir (by default FILE.csv's folder)."
        )
    needs_names = config.shift_type == "confounder" and config.dataset in ("CUB", "CelebA", "table")
    for name, letter in (("target_name", "t"), ("confounder_names", "c")):
        if needs_names and not getattr(config, name):
            raise UserError(f"-d {config.dataset} needs {flag_of(name)} (-{letter}); name it.")
    if config.dataset == "table" and config.metadata is None:
        raise UserError("-d table needs --metadata FILE.csv, the table that lists the images.")
    if config.shift_type == "label_shift_step":
        if config.dataset not in ("CIFAR10", "Cifar"):
            raise UserError(
                f"-s label_shift_step is about CIFAR10, not {config.dataset}; take -s confounder."
            )
        for name in ("minority_fraction", "imbalance_ratio"):
            if getattr(config, name) is None:
                raise UserError(f"-s label_shift_step needs {flag_of(name)}; give a number.")


def check_numbers(config: GdroConfig) -> None:
    """Refuse numbers out of their range."""
    for name in ("beta", "eta", "limit_eps", "robust_step_size", "lr_tau", "random_init", "l2_norm"):
        value = getattr(config, name)
        expect(value is None or 0.0 <= value < math.inf, name, value, "a number of 0 or more")
    for name in ("lamda", "tau", "alpha_"):
        value = getattr(config, name)
        expect(value is None or 0.0 < value < math.inf, name, value, "a number above 0")
    for name in ("gamma", "minimum_variational_weight", "test_epsilon", "minority_fraction"):
        value = getattr(config, name)
        expect(value is None or 0.0 <= value <= 1.0, name, value, "a number from 0 to 1")
    expect(0.0 < config.fraction <= 1.0, "fraction", config.fraction, "a share above 0, at most 1")
    expect(0.0 < config.alpha < math.inf, "alpha", config.alpha, "a share above 0 (1 or more: all groups)")
    expect(0.0 < config.val_fraction < 1.0, "val_fraction", config.val_fraction, "a share between 0 and 1")
    expect(config.log_every >= 1, "log_every", config.log_every, "at least 1")
    expect(config.save_step >= 1, "save_step", config.save_step, "at least 1")
    expect(config.combine_epochs >= 1, "combine_epochs", config.combine_epochs, "at least 1")
    expect(
        config.image_size >= 32 and config.image_size % 32 == 0,
        "image_size",
        config.image_size,
        "a multiple of 32",
    )
    for name in (
        "workers",
        "validation_images",
        "suite_images",
        "sweep_images",
        "natural_steps",
        "main_steps",
        "class_num",
        "n_classes",
    ):
        expect(getattr(config, name) >= 0, name, getattr(config, name), "0 or more")
    for name in ("clmin", "clmax") if config.pixels == "unit" else ():
        value = getattr(config, name)
        expect(0.0 <= value <= 1.0, name, value, "a pixel from 0 to 1 (or any number with --pixels official)")
    expect(config.clmin < config.clmax, "clmin", config.clmin, f"less than --clmax {config.clmax}")
    if config.imbalance_ratio is not None:
        expect(
            1.0 <= config.imbalance_ratio < math.inf, "imbalance_ratio", config.imbalance_ratio, "1 or more"
        )
    for name in ("name_index", "log_dir_text"):
        value = getattr(config, name)
        expect("/" not in value, name, value, "a part of a file's name, without a folder (see --log-dir)")
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
            raise UserError(
                f"{flag_of(name)} needs the weights of a trained network; name them with --pth-name FILE."
            )
    shift = config.shift_type == "label_shift_step"
    if config.train_subset and (shift or config.long_tailed):
        other = "-s label_shift_step" if shift else f"--imbalance-ratio {config.imbalance_ratio:g}"
        raise UserError(
            f"--train-subset {config.train_subset} is not possible with {other}, which it would undo, as it takes as "
            "many images of each class; leave one of them out (--train-subset 0 where --scale brings it)."
        )
    if config.warm_start and config.pretrained:
        raise UserError("--warm-start and --pretrained both say what to begin with; leave one out.")
    if config.warm_start and (config.resume_weights or config.only_test):
        raise UserError("--warm-start and --pth-name both say what to begin with; leave one out.")
    if config.train_from_scratch and config.pretrained:
        raise UserError("--train-from-scratch and --pretrained contradict each other; leave one out.")
    ruled = config.train_type in ("erm", "pgd", "trades")
    if config.normalizes_before_attack and not ruled:
        raise UserError(
            f"--pixels official normalises COVID's images before the attack, which --train-type {config.train_type} "
            "does not know; take erm, pgd or trades, or --pixels unit."
        )
    if config.normalizes_before_attack and config.test_type == "AA":
        raise UserError(
            "--pixels official normalises COVID's images before the attack, and --test-type AA takes images in [0, 1] "
            "alone; take pgd, or --pixels unit."
        )
    if config.is_combine and config.normalizes_before_attack:
        raise UserError(
            "--pixels official normalises COVID's images before the attack, which --is-combine does not know; leave "
            "one of them out."
        )
    if config.is_combine and config.train_type == "CFA":
        raise UserError(
            "--is-combine trains the last layer of the live network, but CFA evaluates an average of networks; take "
            "another --train-type, or leave the flag out."
        )
    if config.ema and (config.is_combine or config.train_type == "CFA"):
        other, why = (
            ("--is-combine", "trains the last layer of the live network")
            if config.is_combine
            else ("--train-type CFA", "averages the weights by a rule of its own")
        )
        raise UserError(f"--ema {config.ema:g} is not possible with {other}, which {why}; leave it out.")
    if not config.gpu.isdigit():
        raise UserError(f"--gpu {config.gpu} is not possible; expected the number of one GPU, such as 0.")
