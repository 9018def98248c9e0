"""Where the scripts lie, and flags that make a run of six steps."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[4]
PACKAGE = Path(__file__).parents[2]
SMALL = [
    *("--data", "CIFAR10", "--model", "resnet8-s2", "--batch-size", "20", "--epochs", "2", "--warm-up", "1"),
    *("--num-steps", "2", "--log-interval", "1", "--save-freq", "1", "--aa-images", "0", "--threads", "1"),
    *("--test-images", "10", "--precision", "float32"),
]
