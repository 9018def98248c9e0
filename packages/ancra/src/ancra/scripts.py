"""From what a user gave to a configuration: the published scripts' defaults, ``--official``, scales, warnings.

A value is, in rising order: the script's published default, the ``--official`` axes, the scale, what the user wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ancra.config import AncraConfig
from ancra.negatives import FIRST_STRATEGY_EPOCH
from ancra.plan import AncraPlan
from robust_core.config import idle_warnings, scale_defaults
from robust_core.data import dataset_info, list_datasets, steps_per_epoch
from robust_core.errors import UserError, unknown_name
from robust_core.extras import autoattack_notes

__all__ = ["SCALES", "SCRIPTS", "Script", "canonical", "resolve"]


@dataclass(frozen=True)
class Script:
    """One of the six published scripts: what it trains unless flags say otherwise."""

    name: str
    defaults: Mapping[str, Any]


_TINY = {"data": "tiny-imagenet", "model": "preactresnet18", "lr": 0.1, "weight_decay": 5e-4}
_PLAIN = {"attention": "none", "contrast": False}

SCRIPTS = {
    script.name: script
    for script in (
        Script("train_CIFAR10_ResNet", {"model": "resnet18", "ckpt_url": "72/model-wrn-last.pt"}),
        Script(
            "train_CIFAR10_WideResNet",
            {
                "model": "wrn-34-10",
                "model_dir": "./model/ANCRA-WideResNet34-TRADES",
                "ckpt_url": "72/model-wrn-last.pt",
            },
        ),
        Script(
            "train_Tiny_ImageNet_PreActResNet",
            {**_TINY, "model_dir": "./model/ANCRA-PreActResNet18-TRADES"},
        ),
        Script(
            "train_ResNet18_baseline",
            {**_PLAIN, "model": "resnet18", "model_dir": "./model/TRADES-ResNet18"},
        ),
        Script(
            "train_WideResNet_baseline",
            {**_PLAIN, "model": "wrn-34-10", "model_dir": "./model/TRADES-WideResNet"},
        ),
        Script("train_PreActResNet_baseline", {**_PLAIN, **_TINY, "model_dir": "./model/TRADES-PreAct"}),
    )
}

_DEMO: dict[str, Any] = {
    "data": "shapes",
    "model": "resnet10-s2",
    "validation": 500,
    "curve_images": 60,
    "selection": "last",
    "nesterov": True,
    "weight_decay": 5e-4,
    "lr": 0.1,
    "num_steps": 3,
    "step_size": 4 / 255,
    "natural_steps": 180,
    "warm_up_steps": 110,
    "main_steps": 70,
    "schedule": "linear",
    "test_images": 400,
    "log_interval": 20,
}
SCALES: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "reduced": {
        "train_subset": 10_000,
        "validation": 1000,
        "epochs": 12,
        "milestones": "9,12",
        "lr": 0.1,
        "weight_decay": 5e-4,
        "test_images": 1000,
        "aa_images": 1000,
        "log_interval": 20,
        "save_freq": 4,
    },
    "demo": _DEMO,
    "smoke": {
        **_DEMO,
        "natural_steps": 18,
        "warm_up_steps": 11,
        "main_steps": 7,
        "test_images": 100,
        "curve_images": 20,
        "log_interval": 10,
    },
}
_SMALL = {"resnet18": "resnet10-s2", "wrn-34-10": "wrn-16-2", "preactresnet18": "preactresnet18-w16"}
_REPLACED = {
    "epochs": ("natural_steps", "warm_up_steps", "main_steps", "schedule"),
    "milestones": ("schedule",),
}
"""Flags whose meaning a scale's default for another setting would override."""


def canonical(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return given settings with a dataset's name as the core has it and an absolute ``data_dir``.

    Raises:
        UserError: for an unknown dataset.
    """
    result = dict(given)
    for name in ("data_dir", "ckpt_url"):  # so that --resume finds them from any folder
        if name in result:
            result[name] = str(Path(result[name]).expanduser().absolute())
    if "data" in result:
        name = str(result["data"]).lower().replace("-", "").replace("_", "")
        known = {core.replace("-", ""): core for core in list_datasets()}
        if name not in known:
            raise unknown_name("dataset", str(result["data"]), list_datasets())
        result["data"] = known[name]
    return result


def resolve(script: Script, given: Mapping[str, Any]) -> tuple[AncraConfig, list[str]]:
    """Return the configuration of a script's run for the settings that a user gave, and lines to print.

    Raises:
        UserError: for names that do not exist, settings that cannot work, and AutoAttack without its package.
    """
    given = canonical(given)
    values: dict[str, Any] = {"data_dir": str(Path("data").absolute()), **script.defaults}
    plain = str(given.get("attention", values.get("attention", "reverse"))) == "none"
    if given.get("official", False):
        values.update(attack_cr="two", select_on="test")
        if plain:
            values["attack_mode"] = "train"
    scale = str(given.get("scale", "paper"))
    values.update(scale_defaults(SCALES.get(scale, {}), given, _REPLACED))
    if scale == "reduced":
        values["model"] = _SMALL.get(str(values["model"]), values["model"])
    if {**values, **given}.get("select_on") == "test":
        values["validation"] = 0  # nothing needs images that are kept apart
    config = AncraConfig(**{**values, **given})
    config = replace(config, run_dir=run_directory(config, script))
    config.validate()
    if config.restart_epoch > 1 and not Path(config.ckpt_url).is_file():
        raise UserError(
            f"--restart-epoch {config.restart_epoch} begins with the weights of --ckpt-url, but '{config.ckpt_url}' "
            "is no file; name a state dict."
        )
    return config, [*idle_settings(config, given), *autoattack_notes(config.aa_images, given, "ancra")]


def run_directory(config: AncraConfig, script: Script) -> str:
    """Return the run's directory: the given one, or the published name behind ``--model-dir``.

    What else makes it another run than the script's own (method, attention, inner loss) is added to the name.
    """
    if config.run_dir is not None:
        return config.run_dir
    usual = {"method": "trades", "attention": "reverse", "inner_loss": "ce", **script.defaults}
    extra = "".join(
        f"-{name.replace('_', '-')}-{getattr(config, name)}"
        for name in ("method", "attention", "inner_loss")
        if getattr(config, name) != usual[name]
    )
    return (
        f"{config.model_dir}-strategy-{config.strategy}-alpha-{config.alpha}-beta-{config.beta}"
        f"-zeta-{config.zeta}-seed-{config.seed}{extra}"
    )


def idle_settings(config: AncraConfig, given: Mapping[str, Any]) -> list[str]:
    """Return one warning for each given setting that has no effect on this run."""
    auxiliary = config.attention != "none"
    no_contrast = "there is no contrast (--no-contrast, or --zeta 0); it only names the directory"
    conditions = {
        **dict.fromkeys(
            ("alpha", "strategy", "sample_class_number", "sample_number"), (config.contrasted, no_contrast)
        ),
        "zeta": (config.contrast, no_contrast),
        "beta": (config.method != "pgd", "--method pgd has no robust term"),
        "cr_beta": (auxiliary, "a plain network has no auxiliary logits"),
        "attention_by": (config.attention in ("reverse", "own"), "the features are not weighted"),
        "ckpt_url": (config.restart_epoch > 1, "it is read with --restart-epoch above 1"),
        "attack_cr": (auxiliary, "a plain network has no auxiliary logits"),
        "epochs": (not config.main_steps, "--main-steps sets the length"),
        "curve_images": (not config.selects_best, "--selection best looks at all validation images"),
        "milestones": (config.schedule == "step", "it is about --schedule step"),
        "inner_loss": (
            config.attack_mode == "frozen",
            "the published baselines' attack climbs cross-entropy",
        ),
    }
    notes = idle_warnings(conditions, given)
    chooses = config.contrasted and not config.strategy.startswith("random")
    if chooses and (last := last_epoch(config)) < FIRST_STRATEGY_EPOCH:
        notes.append(
            f"warning: --strategy {config.strategy} chooses at random here: soft, hard and easy begin with epoch "
            f"{FIRST_STRATEGY_EPOCH}, and the run ends in epoch {last}"
        )
    return notes


def last_epoch(config: AncraConfig) -> int:
    """Return the epoch in which a run ends, as its strategies count: with what comes before the method.

    Lengths in steps are counted on the images of the whole release, the data not being open yet.
    """
    info = dataset_info(config.data)
    apart = 0 if info.own_validation else config.validation
    images = config.train_subset or info.official_counts.get("train", 0) - apart
    epoch_steps = steps_per_epoch(max(images, 1), config.batch_size)
    steps = sum(phase.steps for phase in AncraPlan().phases(config, epoch_steps))
    return config.restart_epoch + (steps - 1) // epoch_steps
