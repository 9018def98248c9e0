"""The pictures that a report shows: natural and adversarial images, predictions and, for PART, masks."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robust_core.attacks import pgd
from robust_core.data import ImageSet
from robust_core.evaluation import Protocol
from robust_core.randomness import generator_for
from robust_core.storage import write_whole

__all__ = ["save_gallery"]

COUNT = 10


def save_gallery(
    path: Path,
    model: nn.Module,
    images: ImageSet,
    attacks: Protocol,
    *,
    seed: int,
    masks: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> None:
    """Write ``gallery.npz`` of the first image of each class (at most ten), attacked by PGD as the protocol has it.

    ``masks`` gives a bool mask ``(n, 1 or 3, H, W)`` for images ``(n, 3, H, W)`` and labels ``(n,)``.
    """
    chosen = _one_per_class(images)
    device = next(model.parameters()).device
    shown = images.subset(chosen).to(device)
    pixels, labels = shown.pixels(slice(None)), shown.labels
    settings = next(member.settings for member in attacks.members if member.kind == "pgd")
    adversarial = pgd(
        model,
        pixels,
        labels,
        eps=settings["eps"],
        step_size=settings["step_size"],
        steps=settings["steps"],
        generator=generator_for(seed, "gallery"),
    )
    with torch.no_grad():
        natural_prediction = model(pixels).argmax(dim=1)
        adversarial_prediction = model(adversarial).argmax(dim=1)
    arrays: dict[str, Any] = {
        "natural": shown.images.cpu().numpy(),
        "adversarial": adversarial.cpu().numpy(),
        "labels": labels.cpu().numpy(),
        "natural_prediction": natural_prediction.cpu().numpy(),
        "adversarial_prediction": adversarial_prediction.cpu().numpy(),
        "classes": np.array(images.info.classes),
    }
    if masks is not None:
        arrays["mask"] = masks(pixels, labels).cpu().numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_whole(path / "gallery.npz", buffer.getvalue())


def _one_per_class(images: ImageSet) -> Tensor:
    labels = images.labels.tolist()
    first: dict[int, int] = {}
    for position, label in enumerate(labels):
        first.setdefault(label, position)
        if len(first) >= min(COUNT, images.info.num_classes):
            break
    return torch.tensor(sorted(first.values()))
