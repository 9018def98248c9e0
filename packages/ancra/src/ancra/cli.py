"""The six published training scripts: parse, build, run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ancra.config import AncraConfig
from ancra.plan import AncraPlan
from ancra.scripts import SCRIPTS, canonical, resolve
from robust_core.script import TrainingScript

__all__ = [
    "train_cifar10_resnet",
    "train_cifar10_wide_resnet",
    "train_preact_resnet_baseline",
    "train_resnet18_baseline",
    "train_tiny_imagenet_preact_resnet",
    "train_wide_resnet_baseline",
    "training_script",
]

PUBLISHED_FLAGS = (
    *("--batch-size", "--test-batch-size", "--epochs", "--weight-decay", "--wd", "--lr", "--momentum"),
    *(
        "--no-cuda",
        "--epsilon",
        "--num-steps",
        "--step-size",
        "--beta",
        "--alpha",
        "--seed",
        "--log-interval",
    ),
    *("--model-dir", "--save-freq", "--cr-beta", "--zeta", "--sample-class-number", "--sample-number"),
    *("--strategy", "--restart-epoch", "--ckpt-url"),
)

EPILOG = """
Without flags the script trains as published, with known faults corrected (README of the package); --official
restores them. Budgets may be written as fractions: --epsilon 8/255. --model-dir is the beginning of the run's
directory, as published; --run-dir is the exact one.
"""


def training_script(name: str) -> TrainingScript[AncraConfig]:
    """Return the script of a published name (without ``.py``)."""
    script = SCRIPTS[name]
    plain = script.defaults.get("attention") == "none"

    def resolved(given: Mapping[str, Any]) -> tuple[AncraConfig, list[str]]:
        return resolve(script, given)

    what = "a baseline (TRADES, AT or MART on a plain network)" if plain else "ANCRA"
    return TrainingScript(
        name=f"{name}.py",
        description=f"Train {what} on {script.defaults.get('data', 'cifar10')} with "
        f"{script.defaults['model']}: --method pgd, trades or mart.",
        epilog=EPILOG,
        kind=AncraConfig,
        plan=AncraPlan(),
        resolve=resolved,
        canonical=canonical,
        defaults=script.defaults,
        published=PUBLISHED_FLAGS,
    )


def train_cifar10_resnet(arguments: Sequence[str] | None = None) -> int:
    """Run ``train_CIFAR10_ResNet.py``; returns the exit code."""
    return training_script("train_CIFAR10_ResNet")(arguments)


def train_cifar10_wide_resnet(arguments: Sequence[str] | None = None) -> int:
    """Run ``train_CIFAR10_WideResNet.py``; returns the exit code."""
    return training_script("train_CIFAR10_WideResNet")(arguments)


def train_tiny_imagenet_preact_resnet(arguments: Sequence[str] | None = None) -> int:
    """Run ``train_Tiny_ImageNet_PreActResNet.py``; returns the exit code."""
    return training_script("train_Tiny_ImageNet_PreActResNet")(arguments)


def train_resnet18_baseline(arguments: Sequence[str] | None = None) -> int:
    """Run ``train_ResNet18_baseline.py``; returns the exit code."""
    return training_script("train_ResNet18_baseline")(arguments)


def train_wide_resnet_baseline(arguments: Sequence[str] | None = None) -> int:
    """Run ``train_WideResNet_baseline.py``; returns the exit code."""
    return training_script("train_WideResNet_baseline")(arguments)


def train_preact_resnet_baseline(arguments: Sequence[str] | None = None) -> int:
    """Run ``train_PreActResNet_baseline.py``; returns the exit code."""
    return training_script("train_PreActResNet_baseline")(arguments)
