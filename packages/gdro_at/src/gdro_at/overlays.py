"""Pictures of saliency: images as rows, networks as columns, natural and attacked side by side."""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from gdro_at.config import PUBLISHED_EPS
from gdro_at.published_saliency import (
    published_attack_saliency,
    published_natural_cam,
    published_overlay,
)
from gdro_at.saliency import attack_saliency, grad_cam
from robust_core.attacks import pgd
from robust_core.errors import UserError, unknown_name
from robust_core.randomness import generator_for
from robust_core.reporting import save_figure
from robust_core.reporting.figures import COLORS, SMALL, new_figure

__all__ = ["SALIENCIES", "Overlays", "draw_overlays", "overlays_of"]

SALIENCIES = ("class", "kl", "published")
START_SCALE = 0.0001
HEAT = "inferno"
LONGEST_NAME = 16
TITLE_WIDTH = 13
_MEANING = {
    "class": "left Grad-CAM of the label, right of its fall in log-probability under attack (grey: no positive part)",
    "kl": "left Grad-CAM of the label, right of the divergence KL(natural || attacked) (grey: no positive part)",
    "published": "published definition: training mode, gradient and activations of two passes (all blue: no map)",
}


class Overlays(NamedTuple):
    """What one network contributes: pictures ``(N, 3, H, W)`` in [0, 1] and predictions ``(N,)``."""

    natural: Tensor
    attacked: Tensor
    natural_prediction: Tensor
    attacked_prediction: Tensor


def overlays_of(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    layer: str,
    eps: float = PUBLISHED_EPS,
    steps: int = 10,
    saliency: str = "class",
    seed: int = 0,
) -> Overlays:
    """Return the natural and the attacked overlays of images ``(N, 3, H, W)`` in [0, 1], on the CPU.

    The attack is TRADES' (divergence, L-inf, at least one of ``steps``, each ``eps / 4``) from ``x + 0.0001 N(0, 1)``,
    of the network itself in evaluation mode. Natural overlays show the Grad-CAM of the label. Attacked ones show, on
    the attacked image, by ``saliency``: ``class`` or ``kl`` the two forms of
    :func:`gdro_at.saliency.attack_saliency`; ``published`` takes both maps and the overlay as published, image by
    image, on a copy of the network. Nothing of the model changes.

    Raises:
        UserError: for an unknown layer or saliency, and for images and labels that no attack takes.
    """
    if saliency not in SALIENCIES:
        raise unknown_name("saliency", saliency, SALIENCIES)
    generator = generator_for(seed, "attack saliency")
    noise = torch.randn(images.shape, generator=generator).to(images)
    adversarial = pgd(
        model,
        images,
        labels,
        eps=eps,
        step_size=eps / 4,
        steps=steps,
        loss="kl",
        start=images + START_SCALE * noise,
    )
    natural = grad_cam(model, images, labels, layer)
    chosen = labels if saliency == "class" else None
    attacked = attack_saliency(model, images, adversarial, layer, labels=chosen)
    if saliency == "published":
        pictures = _published(model, images, adversarial, labels, layer)
    else:
        pictures = _blended(natural.maps, images), _blended(attacked.maps, adversarial)
    predictions = (part.logits.argmax(dim=1).cpu() for part in (natural, attacked))
    return Overlays(*(picture.float().cpu() for picture in pictures), *predictions)


def draw_overlays(
    columns: Mapping[str, nn.Module],
    images: Tensor,
    labels: Tensor,
    *,
    layer: str,
    path: str | Path,
    eps: float = PUBLISHED_EPS,
    steps: int = 10,
    saliency: str = "class",
    seed: int = 0,
    rows: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> Path:
    """Write the picture of named networks, PNG or by its ending PDF, and return its path.

    Images ``(N, 3, H, W)`` in [0, 1] with labels ``(N,)`` are the rows, called ``rows`` (default: their classes by the
    names ``classes``). First the image, then two cells per network as :func:`overlays_of` gives them, below each the
    network's prediction. Each map is scaled on its own: colours compare places, not networks.

    Raises:
        UserError: as :func:`overlays_of`, naming the column; without networks or images.
    """
    if not columns or len(images) == 0:
        raise UserError("There is nothing to draw: give at least one network and one image.")
    found = {}
    for name, model in columns.items():
        try:
            found[name] = overlays_of(
                model, images, labels, layer=layer, eps=eps, steps=steps, saliency=saliency, seed=seed
            )
        except UserError as error:
            raise UserError(f"Column '{name}': {error}") from None
    told = f"Saliency at {layer}, eps {eps * 255:.3g}/255; {_MEANING[saliency]}."
    figure = _figure(found, images.float().cpu(), labels.cpu(), rows, classes, told)
    return save_figure(figure, path)


def _figure(
    found: Mapping[str, Overlays],
    images: Tensor,
    labels: Tensor,
    rows: Sequence[str],
    classes: Sequence[str],
    told: str,
) -> Figure:
    width = 1 + 2 * len(found)
    figure = new_figure(1.15 * width + 0.4, 1.4 * len(images) + 0.8)
    grid = figure.subplots(len(images), width, squeeze=False)
    for row, label in enumerate(labels.tolist()):
        _show(grid[row, 0], images[row])
        named = rows[row] if rows else _class_name(label, classes)
        grid[row, 0].set_ylabel(_short(named), fontsize=SMALL, fontweight="bold")
        for position, overlays in enumerate(found.values()):
            pairs = (
                (overlays.natural, overlays.natural_prediction),
                (overlays.attacked, overlays.attacked_prediction),
            )
            for side, (pictures, predictions) in enumerate(pairs):
                cell, predicted = grid[row, 1 + 2 * position + side], int(predictions[row])
                _show(cell, pictures[row])
                sign, color = ("✓", COLORS[0]) if predicted == label else ("✗", COLORS[1])
                text = f"{sign} {_short(_class_name(predicted, classes))}"
                cell.set_xlabel(text, fontsize=SMALL, color=color, labelpad=3)
    grid[0, 0].set_title("image", fontsize=SMALL)
    for position, name in enumerate(found):
        for side, word in enumerate(("natural", "attacked")):
            grid[0, 1 + 2 * position + side].set_title(f"{_title(name)}\n{word}", fontsize=SMALL)
    figure.supxlabel(told, fontsize=SMALL, wrap=True)
    return figure


def _published(
    model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, layer: str
) -> tuple[Tensor, Tensor]:
    """Return the published natural and attacked overlays, in the official order: the robust map comes first."""
    moved = copy.deepcopy(model)
    natural, attacked = [], []
    for image, other, label in zip(images.split(1), adversarial.split(1), labels.split(1), strict=True):
        robust = published_attack_saliency(moved, image, other, layer).maps
        attacked.append(published_overlay(robust, other)[1])
        natural.append(published_overlay(published_natural_cam(moved, image, label, layer)[0], image)[1])
    return torch.cat(natural), torch.cat(attacked)


def _blended(maps: Tensor, images: Tensor) -> Tensor:
    """Return grey images under heat that grows with the map ``(N, H, W)``: where it is 0 the image stays visible."""
    grey = images.detach().float().mean(dim=1, keepdim=True)
    values = maps.detach().float()
    colors = torch.from_numpy(mpl.colormaps[HEAT](values.cpu().numpy())[..., :3]).to(grey)
    share = 0.75 * values.unsqueeze(1)
    return (1 - share) * grey + share * colors.permute(0, 3, 1, 2)


def _show(axes: Axes, picture: Tensor) -> None:
    axes.imshow(picture.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#d5d9de")


def _class_name(number: int, classes: Sequence[str]) -> str:
    return classes[number] if number < len(classes) else f"class {number}"


def _title(name: str) -> str:
    """Return a column's name on at most two lines, each as wide as a cell."""
    lines = textwrap.wrap(name, TITLE_WIDTH, max_lines=2, placeholder="…")
    return "\n".join(lines)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
