"""ANCRA's settings: the published flags with their defaults, ours besides, and scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ancra.attacks import INNER_LOSSES
from ancra.attention import ATTENTIONS
from ancra.methods import FAMILIES, MILESTONES
from ancra.negatives import STRATEGIES
from robust_core.config import RunConfig, expect, option
from robust_core.data import DatasetInfo, list_datasets
from robust_core.errors import UserError, unknown_name

__all__ = ["SCRIPTS", "AncraConfig", "Script", "canonical", "resolve"]

ALL_STRATEGIES = (*STRATEGIES, *(f"{name}_adv" for name in STRATEGIES))


@dataclass(frozen=True, kw_only=True)
class AncraConfig(RunConfig):
    """Settings of ANCRA-PGD, -TRADES and -MART, their ablations and their baselines."""

    data: str = option(
        "cifar10",
        "cifar10, cifar100, svhn, tiny-imagenet or shapes",
        flags=("--dataset",),
        group="data",
    )
    epochs: int = option(120, "number of the last epoch, counted from 1", group="training")
    selection: str = option(
        "best", "which weights are evaluated at the end", choices=("last", "best"), group="training"
    )
    step_size: float = option(0.007, "step of the attacks", kind="fraction", group="attack")
    run_dir: str | None = option(None, "directory of the run (default: made from --model-dir)")
    model_dir: str = option(
        "./model/ANCRA", "beginning of the run's directory; strategy, alpha, beta, zeta and seed are added"
    )

    method: str = option("trades", "the loss that is built on", choices=FAMILIES, group="method")
    attention: str = option(
        "reverse",
        "weights of the last blocks' features: reverse (the classifier's row), own (a classifier per block), ones "
        "(auxiliary logits alone), none (a plain network)",
        choices=(*ATTENTIONS, "none"),
        group="method",
    )
    attention_by: str = option(
        "label",
        "class whose row weighs the training features: the true label, as published, or the predicted one",
        choices=("label", "predicted"),
        group="method",
    )
    inner_loss: str = option(
        "ce",
        "what the training attack climbs (ce: as released; kl: as TRADES)",
        choices=INNER_LOSSES,
        group="method",
    )
    beta: float = option(6.0, "weight of the robust term (trades, mart)", group="method")
    zeta: float = option(3.0, "weight of the contrast (0: none)", group="method")
    alpha: float = option(1.0, "share of the contrast that freezes the natural side", group="method")
    cr_beta: float = option(2.0, "weight of the auxiliary logits in losses and attacks", group="method")
    strategy: str = option(
        "random_adv",
        "choice of negatives; with _adv they are attacked",
        choices=ALL_STRATEGIES,
        group="method",
    )
    sample_class_number: int = option(1, "negative classes per image", group="method")
    sample_number: int = option(1, "negative images per class", group="method")

    contrast: bool = option(
        True,
        "contrast with negatives (no: --zeta, --alpha and --strategy name the directory only)",
        group="method",
    )

    official: bool = option(
        False, "the published behaviour on every axis below", group="official or corrected"
    )
    attack_cr: str = option(
        "cr-beta",
        "weight of the auxiliary logits in the untargeted attack: --cr-beta, or 2 whatever that is",
        choices=("cr-beta", "two"),
        group="official or corrected",
    )
    attack_mode: str = option(
        "frozen",
        "network that the training attack of a plain network sees: the frozen view, or the live one in training mode",
        choices=("frozen", "train"),
        group="official or corrected",
    )
    select_on: str = option(
        "validation",
        "images for curves and the choice of the best weights",
        choices=("validation", "test"),
        group="official or corrected",
    )

    restart_epoch: int = option(1, "first epoch; above 1 the weights come from --ckpt-url", group="training")
    ckpt_url: str = option(
        "/", "state dict, or checkpoint that holds one, for --restart-epoch", group="training"
    )
    milestones: str = option(
        ",".join(map(str, MILESTONES)),
        "epochs from which the rate is a tenth, a hundredth, ...",
        group="training",
    )
    save_freq: int = option(10, "epochs between state dicts under the published names", flags=("-s",))
    test_epsilon: float = option(
        8 / 255, "budget of the final tests (published: fixed)", kind="fraction", group="evaluation"
    )
    test_batch_size: int = option(100, "images per batch of evaluations", group="evaluation")
    scale: str = option("paper", "defaults for a machine", choices=("reduced", "paper"), group="evaluation")

    @property
    def evaluation_batch_size(self) -> int:
        """Images per batch of evaluations."""
        return self.test_batch_size

    @property
    def selects_on_test(self) -> bool:
        """Whether curves and selection see the test images, as published."""
        return self.select_on == "test"

    @property
    def contrasted(self) -> bool:
        """Whether the loss has its exclusion term."""
        return self.contrast and self.zeta > 0.0

    @property
    def epochs_of_the_rate(self) -> tuple[int, ...]:
        """``milestones`` as numbers.

        Raises:
            UserError: if they are not whole numbers.
        """
        try:
            return tuple(int(word) for word in self.milestones.split(",") if word.strip())
        except ValueError:
            raise UserError(
                f"--milestones {self.milestones} is not possible; expected epochs such as 75,90,100."
            ) from None

    def validate(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            UserError: naming the flag, its value and what is expected.
        """
        super().validate()
        _ = self.epochs_of_the_rate
        for name in ("beta", "zeta", "cr_beta"):
            value = getattr(self, name)
            expect(0.0 <= value < float("inf"), name, value, "a number of 0 or more")
        expect(0.0 < self.test_epsilon <= 1.0, "test_epsilon", self.test_epsilon, "e.g. 8/255")
        expect(0.0 <= self.alpha <= 1.0, "alpha", self.alpha, "a number in [0, 1]")
        for name in ("sample_class_number", "sample_number", "save_freq", "test_batch_size", "restart_epoch"):
            expect(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        expect(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        if self.restart_epoch > self.epochs:
            raise UserError(
                f"--restart-epoch {self.restart_epoch} lies behind the last epoch, --epochs {self.epochs}."
            )
        if self.attack_mode == "train" and self.attention != "none":
            raise UserError(
                "--attack-mode train is the published baselines' attack; it needs --attention none (ANCRA itself "
                "attacks in evaluation mode)."
            )

    def validate_for(self, info: DatasetInfo) -> None:
        """Refuse data without classes to be contrasted with.

        Raises:
            UserError: for one class, or more negative classes than there are others.
        """
        super().validate_for(info)
        if not self.contrasted:
            return
        if info.num_classes < 2:
            raise UserError(
                f"{info.name} has one class, so no image has a negative; train with --zeta 0, or on other data."
            )
        if self.sample_class_number > info.num_classes - 1:
            raise UserError(
                f"--sample-class-number {self.sample_class_number} is more than the {info.num_classes - 1} other "
                f"classes of {info.name}; lower it."
            )


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

REDUCED = {
    "train_subset": 10_000,
    "validation": 1000,
    "epochs": 12,
    "milestones": "9,12",
    "lr": 0.1,
    "weight_decay": 5e-4,
    "test_images": 1000,
    "log_interval": 20,
    "save_freq": 4,
}
NARROW = {"resnet18": "resnet18-w16", "wrn-34-10": "wrn-16-2", "preactresnet18": "preactresnet18-w16"}


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
        UserError: for names that do not exist and settings that cannot work.
    """
    given = canonical(given)
    values: dict[str, Any] = {"data_dir": str(Path("data").absolute()), **script.defaults}
    plain = str(given.get("attention", values.get("attention", "reverse"))) == "none"
    if given.get("official", False):
        values.update(attack_cr="two", select_on="test")
        if plain:
            values["attack_mode"] = "train"
    if given.get("scale", "paper") == "reduced":
        values.update(REDUCED, model=NARROW.get(str(values["model"]), values["model"]))
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
    return config, idle_settings(config, given)


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
        "inner_loss": (
            config.attack_mode == "frozen",
            "the published baselines' attack climbs cross-entropy",
        ),
    }
    return [
        f"warning: --{name.replace('_', '-')} has no effect here: {why}"
        for name, (used, why) in conditions.items()
        if name in given and not used
    ]
