"""Settings of the sizes of a run: ``--scale smoke|demo|reduced|paper``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["SCALES"]

_DEMO: dict[str, Any] = {
    "dataset": "shapes",
    "model": "resnet8-s2",
    "train_from_scratch": True,
    "batch_size": 128,
    "lr": 0.05,
    "weight_decay": 5e-4,
    "nesterov": True,
    "schedule": "linear",
    "epsilon": 2 / 255,
    "num_steps": 3,
    "test_type": "pgd",
    "selection": "best",
    "main_steps": 300,
    "log_interval": 50,
}
SCALES: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "reduced": {
        "dataset": "CIFAR10",
        "model": "resnet8-s2",
        "train_from_scratch": True,
        "imbalance_ratio": 10.0,
        "validation": 1000,
        "epochs": 12,
        "batch_size": 128,
        "lr": 0.05,
        "weight_decay": 5e-4,
        "nesterov": True,
        "schedule": "linear",
        "augment_data": True,
        "epsilon": 4 / 255,
        "test_type": "pgd",
        "test_images": 2000,
        "log_interval": 50,
    },
    "demo": _DEMO,
    "smoke": {**_DEMO, "main_steps": 30, "test_images": 200, "train_subset": 1000, "log_interval": 10},
}
