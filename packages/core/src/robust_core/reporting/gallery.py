"""The gallery: what the attack did to some images, and what the mask let it do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from robust_core.errors import UserError
from robust_core.reporting.figures import COLORS, SMALL, new_figure

__all__ = ["gallery_caption", "gallery_figure"]

MAX_ROWS = 8
NEEDED = ("natural", "adversarial", "labels", "natural_prediction", "adversarial_prediction")


def gallery_figure(gallery: Mapping[str, NDArray[Any]]) -> Figure:
    """Return one row for each of the first images: natural, (mask,) perturbation, adversarial, what they are called.

    ``natural`` uint8 and ``adversarial`` float in [0, 1], both ``(n, 3, H, W)``; ``labels`` and the two
    predictions ``(n,)``; optional ``mask`` bool ``(n, 1 or 3, H, W)`` (True: full budget) and ``classes``
    (names). The perturbation is shown around grey, scaled so that the gallery's largest is black or white.
    """
    natural, adversarial = _checked(gallery)
    count = min(MAX_ROWS, len(natural))
    mask = gallery.get("mask")
    perturbation = adversarial - natural
    scale = _largest(gallery)
    heads = ["natural", *(["mask"] if mask is not None else []), "perturbation", "adversarial"]
    figure = new_figure(1.25 * len(heads) + 0.3, 1.56 * count + 0.3)
    grid = figure.subplots(count, len(heads), squeeze=False)
    for row in range(count):
        pictures = [natural[row]]
        if mask is not None:
            pictures.append(_mask_picture(mask[row]))
        pictures += [0.5 + perturbation[row] / (2 * scale), adversarial[row]]
        for column, picture in enumerate(pictures):
            _show(grid[row, column], picture)
            if row == 0:
                grid[row, column].set_title(heads[column], fontsize=SMALL + 1)
        label = int(gallery["labels"][row])
        grid[row, 0].set_ylabel(_short(_name(gallery, label)), fontsize=SMALL, fontweight="bold")
        for column, key in ((0, "natural_prediction"), (len(heads) - 1, "adversarial_prediction")):
            predicted = int(gallery[key][row])
            right = predicted == label
            grid[row, column].set_xlabel(
                f"{'✓' if right else '✗'} {_short(_name(gallery, predicted))}",
                fontsize=SMALL,
                color=COLORS[0] if right else COLORS[1],
                labelpad=3,
            )
    return figure


def gallery_caption(gallery: Mapping[str, NDArray[Any]]) -> str:
    """Return the sentence below the gallery: how to read it, and by how much the perturbation is scaled."""
    scale = _largest(gallery)
    parts = [
        "Left of each row the label, below the images what the network says (✓ right, ✗ wrong).",
        f"The perturbation is shown around grey, {0.5 / scale:.3g} times its size: black and white are "
        f"-{255 * scale:.3g}/255 and +{255 * scale:.3g}/255, the largest in the gallery.",
    ]
    if gallery.get("mask") is not None:
        parts.insert(
            1, "The mask is bright where a pixel has the full budget (in colour: per colour channel)."
        )
    return " ".join(parts)


def _checked(gallery: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Natural and adversarial images in [0, 1], or a UserError that names what does not fit."""
    missing = [key for key in NEEDED if key not in gallery]
    if missing:
        raise UserError(f"The gallery lacks {', '.join(missing)}: expected {', '.join(NEEDED)}.")
    natural, adversarial = (
        np.asarray(gallery["natural"]),
        np.asarray(gallery["adversarial"], dtype=np.float64),
    )
    if natural.shape != adversarial.shape or natural.ndim != 4 or natural.shape[1] != 3 or len(natural) == 0:
        raise UserError(
            f"The gallery's natural {natural.shape} and adversarial {adversarial.shape} images must both be "
            "(n, 3, H, W) with n > 0."
        )
    scaled = natural / 255.0 if natural.dtype == np.uint8 else natural.astype(np.float64)
    return scaled, adversarial


def _largest(gallery: Mapping[str, NDArray[Any]]) -> float:
    natural, adversarial = _checked(gallery)
    # Without any perturbation all pictures of it are grey, whatever the scale.
    return float(np.abs(adversarial - natural).max()) or 1 / 255


def _mask_picture(mask: NDArray[Any]) -> NDArray[np.float64]:
    return np.broadcast_to(np.asarray(mask, dtype=np.float64), (3, *mask.shape[1:]))


def _show(axes: Axes, picture: NDArray[np.float64]) -> None:
    axes.imshow(np.clip(picture.transpose(1, 2, 0), 0.0, 1.0), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#d5d9de")


def _name(gallery: Mapping[str, NDArray[Any]], number: int) -> str:
    names = gallery.get("classes", ())
    return str(names[number]) if 0 <= number < len(names) else f"class {number}"


def _short(name: str, length: int = 15) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
