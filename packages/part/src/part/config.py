"""PART's settings: the published flags, ours besides, and where each default comes from.

A value is, in rising order: the published default, the corrected or ``--official`` axes, the dataset's own
published setting, the scale, what the user wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from part.controls import MASK_CONTROLS
from part.idle import idle_settings
from part.mask import MASK_RULES
from robust_core.cam import CAM_METHODS
from robust_core.config import RunConfig, expect, option, scale_defaults
from robust_core.data import DatasetInfo, list_datasets
from robust_core.errors import UserError, unknown_name
from robust_core.extras import autoattack_notes

__all__ = ["METHODS", "PartConfig", "resolve", "resolve_as", "run_directory"]

METHODS = ("natural", "at", "trades", "mart", "part", "part-t", "part-m")
FAMILY = {
    "natural": "at",
    "at": "at",
    "part": "at",
    "trades": "trades",
    "part-t": "trades",
    "mart": "mart",
    "part-m": "mart",
}
DATASETS = {"CIFAR10": "cifar10", "CIFAR100": "cifar100", "SVHN": "svhn", "TinyImagenet": "tiny-imagenet"}
MODELS = {"resnet": "resnet18", "wideresnet": "wrn-34-10"}


@dataclass(frozen=True, kw_only=True)
class PartConfig(RunConfig):
    """Settings of PART, PART-T, PART-M and their baselines AT, TRADES, MART and natural training."""

    data: str = option("cifar10", "CIFAR10, CIFAR100, SVHN, TinyImagenet or shapes", group="data")
    model: str = option(
        "resnet18", "resnet (ResNet-18), wideresnet (WRN-34-10) or any network's name", group="model"
    )
    validation: int = option(0, "N training images kept apart for curves and selection", group="data")
    num_class: int = option(
        0, "number of classes (0: the dataset's; another number is refused)", group="data"
    )

    method: str = option("part", "what is trained", choices=METHODS, group="method")
    low_epsilon: float = option(7 / 255, "budget of unimportant pixels", kind="fraction", group="method")
    beta: float = option(6.0, "weight of the robust term (TRADES and MART families)", group="method")
    warm_up: int = option(20, "epochs of plain AT, TRADES or MART before the masks", group="method")
    attack: str = option("pgd", "training attack (AT family)", choices=("pgd", "mma"), group="method")
    rand_init: bool = option(True, "random start of the masked MMA attack", group="method")
    cam: str = option("gradcam", "class activation map", choices=CAM_METHODS, group="method")
    save_weights: int = option(1, "masked epochs between new masks", group="method")
    pre_trained: bool = option(
        False, "read budgets from weighted_eps_list.npz (with --mask-refresh batch)", group="method"
    )
    mask_control: str = option(
        "none", "what replaces the mask, at equal cost", choices=MASK_CONTROLS, group="method"
    )

    official: bool = option(
        False, "the published behaviour on every axis below", group="official or corrected"
    )
    mask_rule: str = option(
        "cam", "how a map becomes a mask", choices=MASK_RULES, group="official or corrected"
    )
    mask_refresh: str = option(
        "epoch",
        "epoch: each image's own mask, moved with its crop; step: fresh for every batch; batch: by batch number "
        "of a reshuffled loader, as published",
        choices=("epoch", "step", "batch"),
        group="official or corrected",
    )
    cam_class: str = option(
        "predicted", "class of the map", choices=("predicted", "label"), group="official or corrected"
    )
    lr_counter: str = option(
        "total",
        "epochs that --adjust-first counts: of the whole run, or restarted after warm-up",
        choices=("total", "restarted"),
        group="official or corrected",
    )
    forwards: str = option(
        "one", "natural passes of TRADES", choices=("one", "two"), group="official or corrected"
    )
    start: str = option(
        "clipped",
        "random start of PART's PGD",
        choices=("clipped", "unclipped"),
        group="official or corrected",
    )

    adjust_first: int = option(60, "learning rate x0.1 from this epoch", group="training")
    adjust_second: int = option(90, "learning rate x0.01 from this epoch", group="training")
    schedule: str = option(
        "step",
        "learning rate: step (--adjust-first, --adjust-second) or linear (falls to 0 after the warm-up)",
        choices=("step", "linear"),
        group="training",
    )
    natural_steps: int = option(0, "steps of natural training before the warm-up", group="training")
    warm_up_steps: int = option(0, "length of the warm-up in steps instead of epochs", group="training")
    main_steps: int = option(0, "length of the masked phase in steps instead of epochs", group="training")
    eps_ramp: bool = option(False, "let the budget rise linearly from 0 over the warm-up", group="training")
    save_freq: int = option(10, "epochs between state dicts under the published names")

    test_epsilon: float = option(
        8 / 255, "budget of the final tests (published: fixed)", kind="fraction", group="evaluation"
    )
    final_tests: str = option(
        "all",
        "final attacks: all (PGD-20, MMA and, as --aa-images says, AutoAttack) or pgd-20 alone; with masks also "
        "PGD-20 within them",
        choices=("all", "pgd-20"),
        group="evaluation",
    )
    aa_images: int = option(-1, "test images for AutoAttack (-1: all, 0: none)", group="evaluation")
    scale: str = option(
        "paper", "defaults for a machine", choices=("smoke", "demo", "reduced", "paper"), group="evaluation"
    )

    @property
    def family(self) -> str:
        """The loss that the method builds on: at, trades or mart."""
        return FAMILY[self.method]

    @property
    def masked(self) -> bool:
        """Whether the method uses masks."""
        return self.method.startswith("part")

    @property
    def uses_stored_budgets(self) -> bool:
        """Whether budgets come from ``weighted_eps_list.npz`` instead of masks."""
        return self.pre_trained and self.method == "part" and self.mask_refresh == "batch"

    @property
    def has_main_phase(self) -> bool:
        """Whether anything comes after the warm-up."""
        return bool(self.main_steps) or self.epochs > self.warm_up

    @property
    def makes_masks(self) -> bool:
        """Whether the run trains with masks that it makes itself."""
        return self.masked and self.has_main_phase and not self.uses_stored_budgets

    @property
    def has_small_budget(self) -> bool:
        """Whether ``low_epsilon`` is used."""
        return self.masked

    def validate(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            UserError: naming the flag, its value and what is expected.
        """
        super().validate()
        if self.has_small_budget and not 0.0 <= self.low_epsilon <= self.epsilon:
            raise UserError(
                f"--low-epsilon {self.low_epsilon * 255:g}/255 must lie between 0 and --epsilon "
                f"{self.epsilon * 255:g}/255: it is the budget of the unimportant pixels."
            )
        for name in ("natural_steps", "warm_up_steps", "main_steps", "warm_up"):
            expect(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("save_weights", "save_freq"):
            expect(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        if not self.main_steps and self.warm_up > self.epochs:
            raise UserError(
                f"--warm-up {self.warm_up} must not exceed --epochs {self.epochs}, which include the warm-up; "
                "lower --warm-up."
            )
        if not (self.epochs or self.natural_steps or self.warm_up_steps or self.main_steps):
            raise UserError("--epochs 0 leaves nothing to train; expected at least 1.")
        expect(self.aa_images >= -1, "aa_images", self.aa_images, "-1 (all), 0 (none) or more")
        expect(0.0 <= self.beta < float("inf"), "beta", self.beta, "a number of 0 or more")
        expect(0.0 < self.test_epsilon <= 1.0, "test_epsilon", self.test_epsilon, "e.g. 8/255")

    def validate_for(self, info: DatasetInfo) -> None:
        """Refuse a number of classes that the data does not have (a partial copy has fewer than its release).

        Raises:
            UserError: naming the flag, its value and what is expected.
        """
        super().validate_for(info)
        if self.num_class not in (0, info.num_classes):
            raise UserError(
                f"--num-class {self.num_class} does not fit {self.data} ({info.num_classes} classes); "
                "leave it out."
            )


OFFICIAL = {
    "mask_rule": "jet",
    "mask_refresh": "batch",
    "cam_class": "predicted",
    "lr_counter": "restarted",
    "forwards": "two",
    "start": "unclipped",
}
SVHN = {"batch_size": 128, "weight_decay": 3.5e-3, "lr": 0.01, "step_size": 1 / 255}
DEMO = {
    "data": "shapes",
    "model": "resnet8-s2",
    "validation": 500,
    "curve_images": 100,
    "nesterov": True,
    "weight_decay": 5e-4,
    "lr": 0.1,
    "num_steps": 3,
    "step_size": 4 / 255,
    "natural_steps": 200,
    "warm_up_steps": 180,
    "main_steps": 100,
    "eps_ramp": True,
    "schedule": "linear",
    "test_images": 400,
    "final_tests": "pgd-20",
    "log_interval": 20,
    "aa_images": 0,
}
SCALES: dict[str, dict[str, Any]] = {
    "paper": {},
    "reduced": {
        "model": "resnet18-w16",
        "train_subset": 10_000,
        "validation": 1000,
        "epochs": 12,
        "warm_up": 4,
        "adjust_first": 9,
        "adjust_second": 12,
        "lr": 0.1,
        "weight_decay": 5e-4,
        "test_images": 2000,
        "log_interval": 20,
        "save_freq": 4,
        "aa_images": 0,
    },
    "demo": DEMO,
    "smoke": {
        **DEMO,
        "natural_steps": 20,
        "warm_up_steps": 18,
        "main_steps": 10,
        "test_images": 100,
        "curve_images": 20,
        "log_interval": 10,
    },
}

RESTARTED = {"reduced": {"adjust_first": 8}}
"""What a scale sets otherwise where epochs are counted behind the warm-up: the rate falls in the last, as published."""


def canonical(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return given settings with the published names of data sets and networks replaced by the core's."""
    result = dict(values)
    if "data_dir" in result:  # so that --resume finds it from any folder
        result["data_dir"] = str(Path(result["data_dir"]).expanduser().absolute())
    if "data" in result:
        names = {**{name.lower(): core for name, core in DATASETS.items()}, **{n: n for n in list_datasets()}}
        if str(result["data"]).lower() not in names:
            raise unknown_name("dataset", str(result["data"]), [*DATASETS, "shapes"])
        result["data"] = names[str(result["data"]).lower()]
    if "model" in result:
        result["model"] = MODELS.get(str(result["model"]).lower(), result["model"])
    return result


Kind = TypeVar("Kind", bound=PartConfig)


def resolve(given: Mapping[str, Any], *, method: str = "part") -> tuple[PartConfig, list[str]]:
    """Return the configuration for the settings that a user gave, and the lines to print about it.

    Raises:
        UserError: for names that do not exist, settings that cannot work, and AutoAttack without its package.
    """
    config, notes = resolve_as(PartConfig, given, method=method)
    images = config.aa_images if config.final_tests == "all" else 0
    return config, notes + autoattack_notes(images, given, "part")


def resolve_as(kind: type[Kind], given: Mapping[str, Any], *, method: str) -> tuple[Kind, list[str]]:
    """Return the configuration of a kind of :class:`PartConfig`, as :func:`resolve` does.

    Raises:
        UserError: for names that do not exist and settings that cannot work.
    """
    given = canonical(given)
    values: dict[str, Any] = {"method": method, "data_dir": str(Path("data").absolute())}
    if given.get("official", False):
        values.update(OFFICIAL)
    scale = str(given.get("scale", "paper"))
    data = str(given.get("data", SCALES[scale].get("data", "cifar10")))
    own = SVHN if data == "svhn" else {}
    counter = {**values, **given}.get("lr_counter")
    of_scale = {**SCALES[scale], **(RESTARTED.get(scale, {}) if counter == "restarted" else {})}
    scaled = scale_defaults(of_scale, given, _REPLACED)
    config = kind(**{**values, **own, **scaled, **given})
    config = replace(config, run_dir=str(run_directory(config)))
    used = [f"{name} {value:g}" for name, value in own.items() if name not in {*scaled, *given}]
    notes = [f"SVHN: published settings {', '.join(used)}"] if used else []
    fitting = max(config.epochs - 1, 0)
    if "warm_up" not in given and not config.main_steps and config.warm_up > fitting:
        notes.append(f"--warm-up {fitting} instead of {config.warm_up}, to fit into --epochs {config.epochs}")
        config = replace(config, warm_up=fitting)
    config.validate()
    return config, notes + idle_settings(config, given)


_REPLACED = {
    "epochs": ("warm_up_steps", "main_steps"),
    "warm_up": ("warm_up_steps",),
    "adjust_first": ("schedule",),
    "adjust_second": ("schedule",),
    "aa_images": ("final_tests",),
}
"""Flags whose meaning a scale's default for another setting would override."""


def run_directory(config: PartConfig) -> str:
    """Return the run's directory: the given one, otherwise the published ``./checkpoint/DATA/MODEL/METHOD``."""
    if config.run_dir is not None:
        return config.run_dir
    data = {core: name for name, core in DATASETS.items()}.get(config.data, config.data)
    model = {"resnet18": "ResNet_18", "wrn-34-10": "WideResnet-34"}.get(config.model, config.model)
    return f"./checkpoint/{data}/{model}/{config.method.upper().replace('-', '_')}"
