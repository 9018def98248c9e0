"""Attacks under a budget made from the class activation map, from one natural pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robust_core.attacks.checks import check_images, check_labels, check_labels_fit
from robust_core.attacks.engine import natural_layout, network_for
from robust_core.attacks.mma import mma
from robust_core.attacks.objectives import Objective
from robust_core.attacks.pgd import pgd
from robust_core.attacks.search import Observer
from robust_core.cam import CamResult, cam_of_images
from robust_core.errors import UserError
from robust_core.models import FrozenView

__all__ = ["Budget", "UnderCam", "mma_under_cam", "pgd_under_cam"]

Budget = Callable[[CamResult], Tensor | float]


class UnderCam(NamedTuple):
    """``images`` ``(N, C, H, W)``: the adversarial ones; ``eps``: their budget; ``cam``: the natural pass."""

    images: Tensor
    eps: Tensor | float
    cam: CamResult


def pgd_under_cam(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    budget: Budget,
    cam_method: str = "gradcam",
    cam_classes: Tensor | None = None,
    step_size: float | Tensor,
    steps: int,
    norm: str = "linf",
    random_start: str | bool = "uniform",
    start: Tensor | None = None,
    restarts: int = 1,
    targeted: bool = False,
    loss: str | Objective = "ce",
    keep: str = "last",
    early_stop: bool = False,
    observe: Observer | None = None,
    generator: torch.Generator | None = None,
) -> UnderCam:
    """Return adversarial images under the budget that ``budget`` makes of the natural images' CAM.

    One natural forward pass gives logits, features, CAM, budget and, for ``loss="kl"``, the reference.
    ``budget``: from a ``CamResult`` to ``eps`` (a number, ``(N,)`` or per pixel). ``cam_classes`` ``(N,)``:
    the classes that the CAM explains, by default the predicted ones. Otherwise as
    :func:`robust_core.attacks.pgd`.
    """
    network, cam = _natural_pass(model, images, labels, budget, cam_method, cam_classes)
    eps = budget(cam)
    adversarial = pgd(
        network,
        images,
        labels,
        eps=eps,
        step_size=step_size,
        steps=steps,
        norm=norm,
        random_start=random_start,
        start=start,
        restarts=restarts,
        targeted=targeted,
        loss=loss,
        reference_logits=cam.logits,
        keep=keep,
        early_stop=early_stop,
        observe=observe,
        generator=generator,
    )
    return UnderCam(adversarial, eps, cam)


def mma_under_cam(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    budget: Budget,
    cam_method: str = "gradcam",
    cam_classes: Tensor | None = None,
    step_size: float | Tensor,
    steps: int,
    targets: int = 3,
    norm: str = "linf",
    random_start: str | bool = "uniform",
    start: Tensor | None = None,
    observe: Observer | None = None,
    generator: torch.Generator | None = None,
) -> UnderCam:
    """Return minimum-margin images under a budget from the CAM, whose natural pass also gives the targets.

    Arguments as in :func:`pgd_under_cam` and :func:`robust_core.attacks.mma`.
    """
    network, cam = _natural_pass(model, images, labels, budget, cam_method, cam_classes)
    eps = budget(cam)
    adversarial = mma(
        network,
        images,
        labels,
        eps=eps,
        step_size=step_size,
        steps=steps,
        targets=targets,
        norm=norm,
        random_start=random_start,
        start=start,
        reference_logits=cam.logits,
        observe=observe,
        generator=generator,
    )
    return UnderCam(adversarial, eps, cam)


def _natural_pass(
    model: nn.Module, images: Tensor, labels: Tensor, budget: Budget, method: str, classes: Tensor | None
) -> tuple[FrozenView, CamResult]:
    """Return the frozen network and the CAM of the images, after the checks that come before any pass."""
    given: Any = budget
    if not callable(given):
        raise UserError(
            f"budget is {given!r}, expected a function from the CAM to eps: for one eps on all pixels give "
            "lambda cam: 8/255, or use pgd or mma."
        )
    check_images(images)
    highest = check_labels(labels, images)
    network: Any = network_for(model, images)
    cam = cam_of_images(network, natural_layout(network, images), method=method, classes=classes)
    check_labels_fit(highest, cam.logits, len(labels))
    return network, cam
