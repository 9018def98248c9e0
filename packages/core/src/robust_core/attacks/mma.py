"""The minimum-margin attack (Gao et al. 2022): PGD towards each of the most likely wrong classes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robust_core.attacks.balls import make_ball, per_image
from robust_core.attacks.checks import (
    check_call,
    check_count,
    check_labels_fit,
    check_no_nan,
    check_reference,
)
from robust_core.attacks.engine import Classifier, ascend, in_layout_of, natural_logits, network_for
from robust_core.attacks.objectives import PerImage, margin_towards, minimum_margin
from robust_core.attacks.search import Observer, watcher
from robust_core.attacks.starts import start_source
from robust_core.errors import UserError

__all__ = ["MmaResult", "ascend_targets", "mma", "mma_details", "wrong_classes"]


class MmaResult(NamedTuple):
    """What the attack found towards each of ``k`` targets.

    ``images`` ``(N, ...)``: the winners. ``target_classes`` ``(N, k)``: wrong classes, by ascending natural
    logit. ``margins`` ``(N, k)``: ``z_t - z_y`` at each last iterate. ``chosen`` ``(N,)``: winning column.
    """

    images: Tensor
    target_classes: Tensor
    margins: Tensor
    chosen: Tensor


def mma(
    model: nn.Module | Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    step_size: float | Tensor,
    steps: int,
    targets: int = 3,
    norm: str = "linf",
    random_start: str | bool = "uniform",
    start: Tensor | None = None,
    reference_logits: Tensor | None = None,
    observe: Observer | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return for each image the last iterate, of one run per target, with the largest ``z_t - z_y``.

    The targets are the wrong classes with the largest natural logits (at most K - 1); each run maximises
    ``-max(z_y - z_t + 50, 0)`` from the same start. ``reference_logits`` ``(N, K)``: the natural ones, if
    known. ``observe`` sees the iterates of every target. Otherwise as :func:`robust_core.attacks.pgd`.
    """
    return mma_details(
        model,
        images,
        labels,
        eps=eps,
        step_size=step_size,
        steps=steps,
        targets=targets,
        norm=norm,
        random_start=random_start,
        start=start,
        reference_logits=reference_logits,
        observe=observe,
        generator=generator,
    ).images


def mma_details(
    model: nn.Module | Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    step_size: float | Tensor,
    steps: int,
    targets: int = 3,
    norm: str = "linf",
    random_start: str | bool = "uniform",
    start: Tensor | None = None,
    reference_logits: Tensor | None = None,
    together: bool | None = None,
    observe: Observer | None = None,
    generator: torch.Generator | None = None,
) -> MmaResult:
    """Return the images of :func:`mma` with their targets and margins.

    ``together`` runs all targets as one batch; None: on a GPU, which a small batch leaves idle. On a
    processor one after the other needs less memory and is no slower.
    """
    highest = check_call(images, labels, eps=eps, step_size=step_size, steps=steps, norm=norm)
    check_count("targets", targets, 1)
    network = network_for(model, images)
    begin = start_source(
        images, eps, random_start=random_start, start=start, norm=norm, generator=generator
    )()
    given = None if reference_logits is None else check_reference(reference_logits, labels)
    logits = natural_logits(network, images) if given is None else given
    check_labels_fit(highest, logits, len(labels))
    check_no_nan(logits)
    if logits.shape[1] < 2:
        raise UserError("The model has one class, expected at least two: there is no wrong class to aim at.")
    result = ascend_targets(
        network,
        images,
        labels,
        start=begin,
        eps=eps,
        step_size=step_size,
        steps=steps,
        target_classes=wrong_classes(logits, labels, min(targets, logits.shape[1] - 1)),
        norm=norm,
        together=together,
        observe=observe,
    )
    return result._replace(images=in_layout_of(result.images, images))


def wrong_classes(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the ``count`` wrong classes with the largest logits ``(N, count)``, by ascending logit."""
    return logits.scatter(1, labels[:, None], -torch.inf).topk(count, dim=1).indices.flip(1)


def ascend_targets(
    network: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    start: Tensor,
    eps: float | Tensor,
    step_size: float | Tensor,
    steps: int,
    target_classes: Tensor,
    norm: str = "linf",
    together: bool | None = None,
    observe: Observer | None = None,
) -> MmaResult:
    """Return the winners of the runs towards ``target_classes`` ``(N, k)``, all from ``start``.

    The unchecked core for training: ``k (steps + 1)`` forward and ``k steps`` backward passes.
    """
    size, count = target_classes.shape
    together = images.is_cuda if together is None else together
    copies = count if together else 1
    eps, step_size = per_image(eps, images), per_image(step_size, images)
    many_labels = labels.repeat(copies)
    many_images, many_starts, many_eps, many_steps = (
        _copies(value, copies, images) for value in (images, start, eps, step_size)
    )
    ends, margins = [], []
    for aims in target_classes.t().reshape(-1, copies * size):
        end = ascend(
            network,
            many_images,
            many_labels,
            start=many_starts,
            eps=many_eps,
            step_size=many_steps,
            steps=steps,
            objective=PerImage(minimum_margin, (aims,)),
            norm=norm,
            visit=None if observe is None else watcher(observe, make_ball(images, eps, norm), size),
        )
        ends.append(end)
        margins.append(margin_towards(natural_logits(network, end), many_labels, aims))
    margins_NK = torch.cat(margins).view(count, size).t()
    chosen = margins_NK.argmax(dim=1)
    winners = torch.cat(ends)[chosen * size + torch.arange(size, device=chosen.device)]
    return MmaResult(winners, target_classes, margins_NK, chosen)


def _copies(value: Any, count: int, images: Tensor) -> Any:
    """Return what has one row per image ``count`` times over; a number or what all images share as it is."""
    if not isinstance(value, Tensor) or value.dim() < images.dim() or len(value) < len(images):
        return value
    return value.repeat(count, *[1] * (value.dim() - 1))
