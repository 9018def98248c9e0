"""Settings of the sizes of a run: ``--scale smoke|demo|reduced|paper``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["SCALES"]

_DEMO: dict[str, Any] = {
    "dataset": "shapes",
    "model": "resnet8-s2",
    "train_from_scratch": True,
    "augment_data": True,
    "batch_size": 64,
    "lr": 0.05,
    # ten times the usual: with 56 images in the smallest group balanced draws are learnt by heart otherwise
    "weight_decay": 5e-3,
    "nesterov": True,
    "schedule": "linear",
    "epsilon": 0.5 / 255,
    "num_steps": 1,
    "test_type": "pgd",
    "natural_steps": 300,
    "main_steps": 225,
    "validation_images": 400,
    "test_images": 1000,
    "log_interval": 50,
}
SCALES: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "reduced": {
        "dataset": "CIFAR10",
        "model": "resnet8-s2",
        "train_from_scratch": True,
        "fraction": 0.5,
        "imbalance_ratio": 10.0,
        "validation": 2000,
        "validation_images": 1000,
        "test_images": 2000,
        "epochs": 10,
        "batch_size": 64,
        "lr": 0.05,
        "weight_decay": 5e-4,
        "nesterov": True,
        "schedule": "linear",
        "augment_data": True,
        "epsilon": 4 / 255,
        "num_steps": 5,
        "test_type": "pgd",
        "log_interval": 50,
    },
    "demo": _DEMO,
    "smoke": {
        **_DEMO,
        "natural_steps": 30,
        "main_steps": 23,
        "train_subset": 1000,
        "validation_images": 100,
        "test_images": 200,
        "log_interval": 10,
    },
}
