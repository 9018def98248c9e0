"""What the public attacks refuse, each with the value, what was expected and the remedy."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robust_core.attacks.balls import NORMS
from robust_core.attacks.objectives import Objective, select
from robust_core.cam import check_pixels
from robust_core.errors import UserError, unknown_name

__all__ = [
    "CheckedObjective",
    "check_call",
    "check_count",
    "check_eps",
    "check_generator",
    "check_images",
    "check_labels",
    "check_labels_fit",
    "check_no_nan",
    "check_norm",
    "check_reference",
    "check_start",
    "check_step_size",
]


def check_images(images: Tensor) -> None:
    """Refuse what is not a non-empty float32 or float64 batch ``(N, ...)`` in [0, 1]."""
    given: Any = images
    if isinstance(given, Tensor) and given.dim() >= 2:
        if given.numel() == 0:
            raise UserError(
                f"The batch of images is empty (shape {tuple(given.shape)}): give at least one image."
            )
        if torch.is_inference_mode_enabled() or given.is_inference():
            raise UserError(
                "Attacks need gradients, which torch.inference_mode forbids: use torch.no_grad instead."
            )
    check_pixels(images)


def check_labels(labels: Tensor, images: Tensor) -> int:
    """Return the largest label; refuse what is not int64 ``(N,)``, non-negative, on the images' device."""
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        found = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise UserError(f"The labels are {found}, expected int64 class numbers: use labels.long().")
    if labels.shape != images.shape[:1]:
        raise UserError(
            f"The labels have shape {tuple(labels.shape)}, expected ({images.shape[0]},): "
            "give one class number per image."
        )
    if labels.device != images.device:
        raise UserError(
            f"The labels are on {labels.device}, the images on {images.device}: use labels.to(images.device)."
        )
    low, high = torch.stack(labels.aminmax()).tolist()
    if low < 0:
        raise UserError(f"A label is {low}, expected class numbers from 0: count the classes from 0.")
    return int(high)


def check_labels_fit(highest: int, logits: Tensor, count: int) -> None:
    """Refuse logits that are not ``(count, K)`` with K above the ``highest`` label."""
    if logits.dim() != 2 or logits.shape[0] != count:
        raise UserError(
            f"The model returned shape {tuple(logits.shape)}, expected logits ({count}, classes): "
            "give a model that returns the logits alone."
        )
    if highest >= logits.shape[1]:
        raise UserError(
            f"A label is {highest}, but the model has {logits.shape[1]} classes, counted from 0: "
            "use the labels of the data set that the model was made for."
        )


def check_eps(eps: float | Tensor, images: Tensor, norm: str = "linf") -> None:
    """Refuse a budget that is negative, NaN, in 255ths, or does not fit the images' shape."""
    _check_amount("eps", eps, images)
    per_pixel = isinstance(eps, Tensor) and eps.dim() > 1
    if norm == "l2" and per_pixel and eps.numel() > 1 and eps.numel() != eps.shape[0]:  # type: ignore[union-attr]
        raise UserError("eps per pixel has no meaning in the L2 norm: give a number or one per image, (N,).")
    largest = _extremes(eps)[1]
    if norm == "linf" and largest > 1.0:
        raise UserError(
            f"eps is {largest:.4g}, expected at most 1: pixels lie in [0, 1], so write 8/255, not 8."
        )


def check_step_size(step_size: float | Tensor, images: Tensor) -> None:
    """Refuse a step size that is negative, NaN, infinite or does not fit the images' shape."""
    _check_amount("step_size", step_size, images)


def check_count(name: str, value: int, least: int) -> None:
    """Refuse a number of steps, restarts or targets that is not a whole number of at least ``least``."""
    given: Any = value
    if isinstance(given, bool) or not isinstance(given, numbers.Integral) or int(given) < least:
        raise UserError(f"{name} is {value!r}, expected a whole number of at least {least}.")


def check_norm(norm: str) -> None:
    """Refuse a norm that is not known."""
    if norm not in NORMS:
        raise unknown_name("norm", str(norm), NORMS)


def check_start(start: Tensor, images: Tensor) -> None:
    """Refuse a start of another shape or device than the images; it may lie outside of ball and box."""
    if not isinstance(start, Tensor) or start.shape != images.shape:
        found = tuple(start.shape) if isinstance(start, Tensor) else type(start).__name__
        raise UserError(f"The start has shape {found}, expected the images' {tuple(images.shape)}.")
    if start.device != images.device:
        raise UserError(
            f"The start is on {start.device}, the images on {images.device}: use start.to(images.device)."
        )
    if start.is_complex() or not bool(start.isfinite().all()):
        raise UserError("The start holds complex numbers, NaN or infinity: every pixel must be a number.")


def check_generator(generator: torch.Generator | None) -> None:
    """Refuse a source of randomness that is none."""
    given: Any = generator
    if given is not None and not isinstance(given, torch.Generator):
        raise UserError(
            f"generator is {given!r}, expected a torch.Generator: give torch.Generator().manual_seed(7) or None."
        )


def check_reference(reference_logits: Tensor, labels: Tensor) -> Tensor:
    """Return the given natural logits; refuse what is not ``(N, K)``, on the labels' device, without NaN.

    That K is the model's number of classes shows at the first pass.
    """
    given: Any = reference_logits
    if not isinstance(given, Tensor) or given.dim() != 2 or len(given) != len(labels):
        found = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise UserError(
            f"reference_logits is {found}, expected a tensor ({len(labels)}, classes): "
            "give the model's logits of the natural images, or leave it out."
        )
    if given.device != labels.device:
        raise UserError(
            f"reference_logits is on {given.device}, the labels on {labels.device}: "
            "use reference_logits.to(labels.device)."
        )
    if not given.is_floating_point() or bool(given.isnan().any()):
        held = "NaN" if given.is_floating_point() else str(given.dtype)
        raise UserError(f"reference_logits holds {held}, expected numbers in float32 or float64.")
    return reference_logits.detach()


def check_call(
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    step_size: float | Tensor = 0.0,
    steps: int = 0,
    norm: str = "linf",
) -> int:
    """Refuse what no attack takes; return the largest label, to be held against the logits."""
    check_images(images)
    check_norm(norm)
    check_eps(eps, images, norm)
    check_step_size(step_size, images)
    check_count("steps", steps, 0)
    return check_labels(labels, images)


@dataclass
class CheckedObjective:
    """An objective behind the checks that need logits; they cost no pass.

    NaN is looked for in the first pass alone (once a call), the other checks read nothing from the device.
    Without a ``highest_label`` the network may return any tensor ``(N, ...)``.
    """

    objective: Objective
    highest_label: int | None
    seen: bool = False

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the values ``(N,)``."""
        if self.highest_label is not None:
            check_labels_fit(self.highest_label, logits, labels.shape[0])
        elif logits.shape[:1] != labels.shape:
            raise UserError(
                f"The model returned shape {tuple(logits.shape)}, expected ({labels.shape[0]}, ...): "
                "give a model whose output has one row per image."
            )
        values: Any = self.objective(logits, labels)
        if not isinstance(values, Tensor) or values.shape != labels.shape:
            found = (
                f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
            )
            raise UserError(
                f"The loss returned {found}, expected ({labels.shape[0]},): "
                "give a function with one value per image (reduction='none')."
            )
        if not self.seen:
            check_no_nan(logits, values)
            self.seen = True
        return values

    def select(self, rows: Tensor) -> CheckedObjective:
        """Return the objective for some images of the batch."""
        return CheckedObjective(select(self.objective, rows), self.highest_label, self.seen)


def check_no_nan(logits: Tensor, values: Tensor | None = None) -> None:
    """Refuse NaN in logits or in what a loss makes of them: no step could follow it, and none would show."""
    pair = torch.stack([part.detach().isnan().any() for part in (logits, values) if part is not None])
    bad = pair.tolist()
    if bad[0]:
        raise UserError(
            "The model's logits are NaN, expected numbers: its weights are damaged or its training diverged; "
            "load sound weights."
        )
    if bad[-1]:
        raise UserError(
            "The loss is NaN although the logits are numbers: give a loss that is defined for all logits."
        )


def _check_amount(name: str, value: Any, images: Tensor) -> None:
    if isinstance(value, Tensor):
        if value.is_complex() or value.dtype == torch.bool:
            raise UserError(
                f"{name} is a tensor of {value.dtype}, expected numbers: give float32, e.g. 8/255."
            )
        _check_shape(name, value, images)
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UserError(f"{name} is {value!r}, expected a number or a tensor, e.g. 8/255.")
    low, high = _extremes(value)
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = low if not math.isfinite(low) else high
        raise UserError(f"{name} is {bad}, expected a finite number of at least 0, in pixel units (8/255).")
    if low < 0:
        raise UserError(f"{name} is {low:.4g}, expected at least 0: give a size, not a direction.")


def _check_shape(name: str, value: Tensor, images: Tensor) -> None:
    if value.device != images.device and value.dim() > 0:
        raise UserError(
            f"{name} is on {value.device}, the images on {images.device}: use {name}.to(images.device)."
        )
    shape = (value.shape[0], *[1] * (images.dim() - 1)) if value.dim() == 1 else tuple(value.shape)
    trailing = images.shape[images.dim() - len(shape) :]
    fits = len(shape) <= images.dim() and all(
        mine in (1, whole) for mine, whole in zip(shape, trailing, strict=True)
    )
    if value.numel() == 0 or not fits:
        raise UserError(
            f"{name} has shape {tuple(value.shape)}, which does not fit images {tuple(images.shape)}: "
            f"give a number, ({images.shape[0]},) or a shape that broadcasts to the images."
        )


def _extremes(value: float | Tensor) -> tuple[float, float]:
    if isinstance(value, Tensor):
        low, high = torch.stack(value.detach().double().aminmax()).tolist()
        return float(low), float(high)
    return float(value), float(value)
