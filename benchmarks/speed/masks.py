"""(c) Masks, from class activation map to the budget of each pixel, against torchcam and PIL one by one."""

from __future__ import annotations

import statistics
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.speed.clock import alternate, plan_rounds, seconds_of
from benchmarks.speed.rows import Row
from benchmarks.speed.setting import EPS, LOW_EPS, Setting, say
from part.mask import budget, jet_mask
from robust_core.cam import class_activation_map, normalize_map
from robust_core.models import FrozenView

__all__ = ["compare", "published_budgets"]


def published_budgets(network: nn.Module, images: Tensor) -> Tensor:
    """Return the budgets ``(N, 3, H, W)`` as the official code makes them, one image at a time."""
    from matplotlib import colormaps
    from PIL import Image
    from torchcam.methods import GradCAM

    jet, size = colormaps["jet"], (images.shape[3], images.shape[2])
    found = []
    with GradCAM(network, target_layer="layer4") as extractor:
        for image in images:
            logits = network(image[None])
            heat = extractor(int(logits.argmax()), logits)[0][0]
            resized = Image.fromarray(heat.cpu().numpy()).resize(size, resample=Image.Resampling.BICUBIC)
            colours = (255 * jet(np.asarray(resized) ** 2)[:, :, :3]) / 255
            weights = np.maximum((colours - colours.mean()) / colours.std(), 1.0).astype(np.float32)
            found.append(np.where(weights.transpose(2, 0, 1) > 1, np.float32(EPS), np.float32(LOW_EPS)))
    return torch.from_numpy(np.stack(found)).to(images.device)


def _ours(view: FrozenView, images: Tensor) -> Tensor:
    view.refresh()
    heat = normalize_map(class_activation_map(view, images, method="gradcam").maps)
    return budget(jet_mask(heat, (images.shape[2], images.shape[3])), eps=EPS, low_eps=LOW_EPS)


@torch.no_grad()
def _forward(view: FrozenView, images: Tensor) -> Tensor:
    return view(images)  # type: ignore[no-any-return]


def _target(setting: Setting, precision: str) -> float | None:
    if setting.device.type == "cuda":
        return 100.0
    if precision.startswith("float32"):
        return 2.0
    return 7.0 if setting.matrix_units else None


def compare(setting: Setting) -> list[Row]:
    """Return one row per precision, with the fraction of the forward pass's rate that is reached."""
    try:
        expected = published_budgets(setting.network, setting.images)
    except ImportError as error:
        say(f"(c) left out, {error}: nox -s bench installs what is missing")
        return []
    images = setting.images
    sides = {"published": partial(published_budgets, setting.network, images)}
    for name, view in setting.views.items():
        sides[f"ours, {name}"] = partial(_ours, view, images)
        sides[f"forward pass, {name}"] = partial(_forward, view, images)
    equal = {
        name: float((_ours(view, images) == expected).float().mean()) for name, view in setting.views.items()
    }
    whole = sum(seconds_of(run, setting.device) for run in sides.values())
    rounds = plan_rounds(whole, 0.06 * setting.seconds, least=setting.least_rounds)
    say(f"(c) {rounds} rounds of about {whole:.1f} s")
    times = alternate(sides, rounds, setting.device)
    rows = []
    for name in setting.views:
        ours, forward = times[f"ours, {name}"], times[f"forward pass, {name}"]
        fraction = statistics.median(a / b for a, b in zip(forward, ours, strict=True))
        rows.append(
            Row(
                part="c",
                ours=name,
                other="torchcam and PIL, one by one",
                our_times=ours,
                other_times=times["published"],
                target=_target(setting, name),
                equal=equal[name],
                needs_equal=name.startswith("float32"),
                note=f"{100 * fraction:.0f}% of the rate of a forward pass alone",
                details={"forward_times": forward, "fraction_of_forward": fraction},
            )
        )
    return rows
