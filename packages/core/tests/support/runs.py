"""Small runs: a data set of 48 drawn images, a network of a few channels, a loop of a few steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from robust_core.data import ImageSet, dataset_info
from robust_core.models import Network, build_model
from robust_core.training import Hooks, LoopSettings, Machine, Phase, Processes, Rate, RunDirectory, Training

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def undrawn(path: Path) -> Path:
    """Stand for ``write_report`` where the pictures, half of a small run's time, are not what is tested."""
    return path / "report" / "report.html"


class Killed(Exception):
    """Raised by a hook in the place of a kill."""


def image_set(count: int = 48, seed: int = 0, size: int = 32) -> ImageSet:
    """Return images whose class is their colour, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    base = torch.rand(10, 3, 1, 1, generator=torch.Generator().manual_seed(99)) * 200
    noise = torch.rand(count, 3, size, size, generator=generator) * 55
    images = (base[labels] + noise).to(torch.uint8)
    return ImageSet(
        dataset_info("cifar10"), "train", images, labels, torch.arange(count), digest=f"made-{seed}"
    )


def write_folders(root: Path, per_class: int = 6, size: int = 32) -> Path:
    """Write CIFAR-10 as class folders of PNG files, ``per_class`` images in each; returns the root."""
    for split, seed in (("train", 0), ("test", 1)):
        images = image_set(10 * per_class, seed, size)
        for number, (pixels, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
            folder = root / split / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            array = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
            Image.fromarray(array).save(folder / f"{number:04d}.png")
    return root


def small_model(seed: int = 1) -> Network:
    """Return a ResNet of four channels."""
    return build_model("resnet18-w4", 10, seed=seed)


def machine(**changes: Any) -> Machine:
    """Return this machine with one thread."""
    values: dict[str, Any] = {
        "device": "cpu",
        "threads": 1,
        "precision": "float32",
        "train_precision": "float32",
        "compile": False,
        "processor": "test",
        "torch": torch.__version__,
    }
    return Machine(**{**values, **changes})


@dataclass
class StopAt:
    """A figure hook that ends the run at a step, as a kill would."""

    step: int

    def __call__(self, name: str, value: float, step: int) -> None:
        if step >= self.step:
            raise Killed


def training(
    path: Path,
    phases: Callable[[], list[Phase]],
    *,
    settings: LoopSettings | None = None,
    hooks: Hooks | None = None,
    precision: str = "float32",
    processes: Processes | None = None,
    model: Network | None = None,
    data: ImageSet | None = None,
) -> Training:
    """Return a run of the loop in ``path``, new or to be continued."""
    exists = (path / "config.json").exists()
    run = RunDirectory.open(path) if exists else RunDirectory.create(path, {"config": {}})
    return Training(
        model=small_model() if model is None else model,
        data=image_set() if data is None else data,
        phases=phases(),
        settings=settings or LoopSettings(batch_size=16, log_interval=1, checkpoint_every=1),
        machine=machine(precision=precision),
        run=run,
        processes=processes or Processes(),
        hooks=hooks or Hooks(),
    )


def constant(lr: float = 0.05) -> Rate:
    """Return a constant rate."""
    return Rate("constant", lr)


def weights_of(run: Training) -> dict[str, torch.Tensor]:
    """Return copies of all parameters and buffers."""
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Return whether two state dicts are equal to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
