"""``run_expt.py``: parse, build, run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gdro_at.config import GdroConfig
from gdro_at.idle import idle_settings
from gdro_at.plan import GdroPlan
from gdro_at.scales import SCALES
from robust_core.cli import guarded
from robust_core.config import flag_of, scale_defaults
from robust_core.errors import UserError
from robust_core.extras import autoattack_notes
from robust_core.script import TrainingScript

__all__ = ["PUBLISHED_FLAGS", "resolve", "run_expt", "training_script"]

PUBLISHED_FLAGS = tuple(
    flag_of(name)
    for name in (
        *(
            "dataset",
            "shift_type",
            "target_name",
            "confounder_names",
            "resume",
            "pth_name",
            "minority_fraction",
        ),
        *(
            "imbalance_ratio",
            "fraction",
            "root_dir",
            "reweight_groups",
            "augment_data",
            "val_fraction",
            "class_num",
        ),
        *(
            "robust",
            "alpha",
            "generalization_adjustment",
            "automatic_adjustment",
            "use_normalized_loss",
            "btl",
        ),
        *("hinge", "model", "train_from_scratch", "n_epochs", "n_classes", "batch_size", "lr", "scheduler"),
        *("weight_decay", "gamma", "minimum_variational_weight", "log_dir", "log_dir_text", "name_index"),
        *(
            "log_every",
            "save_step",
            "save_best",
            "save_last",
            "seed",
            "show_progress",
            "train_type",
            "test_type",
        ),
        *("only_test", "gpu", "early_stop", "is_combine", "epsilon", "random_init", "attack_iters", "clmax"),
        *("clmin", "zennit_show", "beta", "eta", "tau", "lr_tau", "lamda", "alpha_", "l2_norm", "limit_nat"),
        *("limit_adv", "train_grad", "trades_new", "limit_eps", "robust_step_size"),
    )
)
_HIDDEN = ("data", "resume_weights", "curve_images")
_DATA = {
    "CUB": "waterbirds",
    "CelebA": "celeba",
    "Covid": "covid",
    "CIFAR10": "cifar10",
    "Cifar": "cifar10",
    "shapes": "shapes-grouped",
}
_ROOTS = {"CUB": "cub", "CelebA": "celebA", "Covid": "dataset", "CIFAR10": "data", "Cifar": "data"}
"""Where the images of a data set are sought without --root-dir: the core's defaults, in the present folder."""
_PATHS = ("root_dir", "data_dir", "metadata", "cache_dir", "pretrained", "pth_name", "warm_start")
_REPLACED = {"epochs": ("natural_steps", "main_steps", "schedule")}
CIFAR_RATE = 0.01
CGD_STEP = 0.05

EPILOG = """
The published flags keep their meaning and defaults; what the official code parses and ignores is listed under
"ignored". Group weights follow the published rule (--weights official) or the corrected one (--weights corrected), and
each difference has a flag of its own; everything else is corrected unless --official is given (README of the package).
"""


def canonical(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return given settings with absolute paths and the core's name of the data."""
    result = dict(given)
    for name in _PATHS:
        if result.get(name):
            result[name] = str(Path(result[name]).expanduser().absolute())
    if "dataset" in result:
        result["data"] = _DATA.get(result["dataset"], "table")
    return result


def resolve(given: Mapping[str, Any]) -> tuple[GdroConfig, list[str]]:
    """Return the configuration of a run for the settings that a user gave, and lines to print.

    Raises:
        UserError: for names that do not exist, settings that cannot work, and a suite without AutoAttack's package.
    """
    if "dataset" not in given and "scale" not in given:
        raise UserError(
            "run_expt.py needs -d, the data set: CUB, CelebA, Covid, CIFAR10, Cifar, table or shapes."
        )
    given = canonical(given)
    notes = []
    values: dict[str, Any] = {"data": "shapes-grouped"}
    if given.get("official", False):
        values.update(selection="official", pixels="official", weights="official")
    if given.get("dataset") == "Cifar" and given.get("shift_type", "confounder") == "confounder":
        values.update(lr=CIFAR_RATE, schedule="step")
        notes.append(
            "-d Cifar: rate 0.01, a tenth from epoch 75, 90 and 100 on, as published"
            + (f"; --lr {given['lr']} wins" if "lr" in given else "")
        )
        if "lr" in given:
            values["schedule"] = "constant"
    if given.get("train_type") == "CGD":
        values["robust_step_size"] = CGD_STEP
    values.update(scale_defaults(SCALES.get(str(given.get("scale", "paper")), {}), given, _REPLACED))
    chosen = {**values, **given}
    place = _ROOTS.get(chosen.get("dataset", ""))
    if place and not (chosen.get("root_dir") or chosen.get("data_dir")):
        chosen["root_dir"] = str(Path(place).absolute())  # so that --resume finds it from any folder
    config = GdroConfig(**chosen)
    config.validate()
    one_process = "LOCAL_RANK" not in os.environ  # torchrun gives each process a GPU of its own
    if torch.cuda.is_available() and config.device == "auto" and one_process:
        config = replace(config, device=f"cuda:{config.gpu}")
    config = replace(config, run_dir=config.run_dir or _numbered_folder(config))
    notes += autoattack_notes(config.suite_images, given, "gdro_at", setting="suite_images")
    return config, [*notes, *idle_settings(config, given)]


def _numbered_folder(config: GdroConfig) -> str:
    """Return the published name of the next run's folder in ``--log-dir``."""
    parent = Path(config.log_dir)
    taken = sum(entry.is_dir() for entry in parent.iterdir()) if parent.is_dir() else 0
    start = 0.01 if config.random_init is None else config.random_init
    name = f"{config.dataset}-{config.train_type}-{config.test_type}"
    name += f"-re{config.reweight_groups}-ro{config.robust}-{start}{config.epsilon}"
    while (parent / f"{taken + 1}-{name}").exists():
        taken += 1
    return str(parent / f"{taken + 1}-{name}")


def training_script() -> TrainingScript[GdroConfig]:
    """Return ``run_expt.py``."""
    return TrainingScript(
        name="run_expt.py",
        description="Train and test under subpopulation shift: ERM, Group-DRO, adversarial training, GDRO-AT and "
        "fairness baselines, natural and robust accuracy per group.",
        epilog=EPILOG,
        kind=GdroConfig,
        plan=GdroPlan(),
        resolve=resolve,
        canonical=canonical,
        published=PUBLISHED_FLAGS,
        hidden=_HIDDEN,
        bare_resume="resume_weights",
        bare_resume_help="begin with the weights of --pth-name, as published",
    )


def run_expt(arguments: Sequence[str] | None = None) -> int:
    """Run ``run_expt.py``; returns the exit code."""
    script = training_script()
    given, _, _ = script.parse(sys.argv[1:] if arguments is None else arguments)
    return _draw(given) if given.get("zennit_show") else script(arguments)


def _draw(given: Mapping[str, Any]) -> int:
    """Draw the attack saliency of given checkpoints (``--zennit-show``); returns the exit code.

    ``-d`` and what belongs to it say which images; without it the networks' runs do.
    """
    from gdro_at.draw import DrawConfig, run

    def body() -> None:
        if not given.get("checkpoints"):
            raise UserError("--zennit-show needs the networks to draw: --checkpoints NAME=PATH NAME=PATH ...")
        experiment = resolve(given)[0] if "dataset" in given else None
        names = {"epsilon": "eps", "seed": "seed", "device": "device", "data_dir": "data_dir"}
        picture = {own: given[name] for name, own in names.items() if name in given}
        networks = {"model": given["model"]} if "model" in given else {}
        if experiment is not None:
            networks["normalize"] = experiment.normalizes
        run(DrawConfig(**picture), networks, str(given["checkpoints"]).split(","), experiment)

    return guarded(body, "the same command begins anew")
