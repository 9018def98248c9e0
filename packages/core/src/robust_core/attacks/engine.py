"""The loop that every gradient attack runs: gradient with respect to the images, step, back into the ball."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robust_core.attacks.balls import make_ball, per_image
from robust_core.attacks.objectives import Objective
from robust_core.cam import check_channels
from robust_core.errors import UserError
from robust_core.models import FrozenView, frozen
from robust_core.models.frozen import only_logits

__all__ = [
    "Classifier",
    "ascend",
    "gradient_of",
    "in_layout_of",
    "logits_of",
    "natural_layout",
    "natural_logits",
    "network_for",
]

Classifier = Callable[[Tensor], Tensor]


def network_for(model: nn.Module | Classifier, images: Tensor) -> Classifier:
    """Return what an attack on these images runs on: the frozen view of a module, a function as it is.

    Raises ``UserError`` for what is neither, and for images that a network of the core cannot take.
    """
    network: Classifier = frozen(model)
    check_channels(network, images)
    return network


def logits_of(network: Classifier, images: Tensor) -> Tensor:
    """Return the logits ``(N, K)``; ``UserError`` if the network returns something else than a tensor."""
    return only_logits(network(images), len(images))


def gradient_of(
    network: Classifier, images: Tensor, labels: Tensor, objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of the objective ``(N, ...)``, the logits ``(N, K)`` and the values ``(N,)``.

    Only the images' gradient is computed, so no parameter's ``.grad`` is touched. Raises ``UserError`` where
    there is none.
    """
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        logits = logits_of(network, leaf)
        values = objective(logits, labels)
        gradient = None
        if values.requires_grad:
            (gradient,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True)
    if gradient is None:
        raise _no_gradient(logits, values)
    return gradient, logits.detach(), values.detach()


def _no_gradient(logits: Tensor, values: Tensor) -> UserError:
    if logits.requires_grad and not values.requires_grad:
        return UserError(
            "The loss has no gradient with respect to the logits, expected one to climb: compute it with "
            "torch, without detach, item or torch.no_grad."
        )
    return UserError(
        "The model's logits have no gradient with respect to the images, expected one to climb: give a model "
        "that depends on them, without detach, round trips through numpy or torch.no_grad."
    )


def natural_layout(network: Classifier, images: Tensor) -> Tensor:
    """Return the images in the memory layout that the network computes in, so that no step converts them.

    A function that calls a frozen view may name it as its ``view``.
    """
    if isinstance(getattr(network, "view", network), FrozenView) and images.dim() == 4:
        return images.contiguous(memory_format=torch.channels_last)
    return images


def in_layout_of(result: Tensor, images: Tensor) -> Tensor:
    """Return the result with the memory layout of the given images."""
    return result.contiguous() if images.is_contiguous() else result


def natural_logits(network: Classifier, images: Tensor) -> Tensor:
    """Return the logits ``(N, K)`` of the images by one pass without gradient."""
    with torch.no_grad():
        return logits_of(network, natural_layout(network, images.detach()))


def ascend(
    network: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    start: Tensor,
    eps: float | Tensor,
    step_size: float | Tensor,
    steps: int,
    objective: Objective,
    norm: str = "linf",
    visit: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Return the iterate ``(N, ...)`` after ``steps`` steps that raise ``objective``, from ``start``.

    The unchecked core for training: ``steps`` forward and backward passes, nothing read back from the device.
    ``network`` is what ``robust_core.models.frozen`` gives. ``start`` need not lie in the ball or the box
    (the first step brings it back; ``steps=0`` returns it). ``eps`` is a number, ``(N,)`` or, for L-inf, per
    pixel. ``visit`` sees every iterate, start and last included. A frozen view's result is channels-last.
    """
    images = natural_layout(network, images.detach())
    ball = make_ball(images, eps, norm)
    step_size = per_image(step_size, images)
    iterate = natural_layout(network, start.detach().to(images.dtype))
    for _ in range(steps):
        if visit is not None:
            visit(iterate)
        gradient, _, _ = gradient_of(network, iterate, labels, objective)
        iterate = ball.step(iterate, gradient, step_size)
    if visit is not None:
        visit(iterate)
    return iterate
