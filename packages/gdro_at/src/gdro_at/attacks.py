"""The training attack of every method here, and what it finds on the validation images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from robust_core.attacks import ascend
from robust_core.attacks.balls import per_image
from robust_core.attacks.objectives import Objective, cross_entropy, kl_to
from robust_core.data import ImageSet
from robust_core.errors import UserError
from robust_core.randomness import generator_for, rows_of_rank
from robust_core.training.distributed import gather_rows
from robust_core.training.method import StepContext

__all__ = [
    "PUBLISHED_NOISE",
    "TrainingAttack",
    "ValidationLogits",
    "ascend_between",
    "validation_images",
    "validation_logits",
]

PUBLISHED_NOISE = 1e-4
"""Standard deviation of most published starts, whatever eps and ``--random_init`` are; they are not clipped."""
START_SHARE = 1 / 32
"""Standard deviation of the start in units of eps: the published 0.001 at 8/255, made scale-free."""


def ascend_between(
    view: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    clip: tuple[float, float],
    start: Tensor,
    eps: float | Tensor,
    step_size: float | Tensor,
    steps: int,
    objective: Objective,
) -> Tensor:
    """Return the images ``(n, ...)`` after ``steps`` steps that keep to ``eps`` and to pixels in ``clip``.

    As :func:`robust_core.attacks.ascend`, which knows [0, 1] alone: other ranges are brought to it and back.
    """
    if clip == (0.0, 1.0):
        return ascend(
            view, images, labels, start=start, eps=eps, step_size=step_size, steps=steps, objective=objective
        )
    low, width = clip[0], clip[1] - clip[0]
    return low + width * ascend(
        lambda points: view(low + width * points),
        (images - low) / width,
        labels,
        start=(start - low) / width,
        eps=eps / width,
        step_size=step_size / width,
        steps=steps,
        objective=objective,
    )


@dataclass(frozen=True)
class TrainingAttack:
    """PGD from a normal start on the frozen view (fair_baselines.md, section 0).

    ``eps`` in pixels of [0, 1]; steps of ``step_size`` (None: ``eps / 4``); ``objective`` is ``kl`` (to the natural
    prediction, which stays fixed) or ``ce``; ``clip`` is the range of adversarial pixels (``--clmin``, ``--clmax``).
    The start is ``x + noise N(0, 1)`` (``noise`` None: eps / 32), clipped to ball and range unless ``clip_start`` is
    off, as published.
    """

    eps: float
    steps: int = 10
    step_size: float | None = None
    objective: str = "kl"
    noise: float | None = None
    clip_start: bool = True
    clip: tuple[float, float] = (0.0, 1.0)

    @property
    def step(self) -> float:
        """The step size."""
        return self.eps / 4 if self.step_size is None else self.step_size

    def published(self, noise: float = PUBLISHED_NOISE) -> TrainingAttack:
        """Return the attack with a published start: ``x + noise N(0, 1)``, not clipped."""
        return replace(self, noise=noise, clip_start=False)

    def begin(self, images: Tensor, draw: Tensor, eps: float | Tensor | None = None) -> Tensor:
        """Return the starts for standard normal numbers ``draw``, shaped as the images."""
        scale = self.eps * START_SHARE if self.noise is None else self.noise
        points = images + scale * draw
        if not self.clip_start:
            return points
        radius = per_image(self.eps if eps is None else eps, images)
        return torch.minimum(torch.maximum(points, images - radius), images + radius).clamp(*self.clip)

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        context: StepContext,
        *,
        eps: float | Tensor | None = None,
        step_size: float | Tensor | None = None,
    ) -> Tensor:
        """Return adversarial images ``(n, 3, H, W)``; ``eps`` and ``step_size`` may be given per image ``(n,)``."""
        return self.climb(context, images, labels, context.normal("start", images), eps, step_size)

    def climb(
        self,
        context: StepContext,
        images: Tensor,
        labels: Tensor,
        draw: Tensor,
        eps: float | Tensor | None = None,
        step_size: float | Tensor | None = None,
    ) -> Tensor:
        """Return adversarial images from the start that ``draw`` gives."""
        with torch.no_grad():
            objective: Objective = cross_entropy
            if self.objective == "kl":
                objective = kl_to(context.view(images))
            return ascend_between(
                context.view,
                images,
                labels,
                clip=self.clip,
                start=self.begin(images, draw, eps),
                eps=self.eps if eps is None else eps,
                step_size=self.step if step_size is None else step_size,
                steps=self.steps,
                objective=objective,
            )


class ValidationLogits(NamedTuple):
    """What the frozen view says of the validation images: ``natural`` and ``adversarial`` logits ``(N, classes)``."""

    natural: Tensor
    adversarial: Tensor


def validation_images(context: StepContext, name: str) -> ImageSet:
    """Return the validation images, by which the method ``name`` weighs; ``UserError`` if there are none."""
    if context.validation is None or len(context.validation) == 0:
        raise UserError(
            f"{name} weighs by what it sees on validation images, but there are none: take --validation N above 0."
        )
    return context.validation


def validation_logits(
    data: ImageSet, attack: TrainingAttack, context: StepContext, *, batch_size: int = 128
) -> ValidationLogits:
    """Return logits of all validation images, natural and attacked, on the context's view.

    Each process attacks its rows; the noise depends on the seed, the epoch and the image, not on ``batch_size`` or the
    number of processes.
    """
    low, high = rows_of_rank(len(data), context.processes.rank, context.processes.world_size)
    natural, adversarial = [], []
    for start in range(low, high, batch_size):
        rows = torch.arange(start, min(start + batch_size, high))
        images = data.pixels(rows).to(data.labels.device)
        labels = data.labels[rows]
        draw = torch.stack([_noise(context, int(row), images) for row in rows])
        found = attack.climb(context, images, labels, draw)
        with torch.no_grad():
            natural.append(context.view(images))
            adversarial.append(context.view(found))
    whole = [gather_rows(torch.cat(part), context.processes) for part in (natural, adversarial)]
    if len(data) < context.processes.world_size:  # then each process has seen all of them
        whole = [part[: len(data)] for part in whole]
    return ValidationLogits(*whole)


def _noise(context: StepContext, row: int, images: Tensor) -> Tensor:
    generator = generator_for(context.seed, "validation start", context.epoch, row)
    return torch.randn(images.shape[1:], generator=generator, dtype=torch.float32).to(images)
