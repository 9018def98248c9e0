"""Where an attack begins: at the image, at a random point near it, or at a given one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robust_core.attacks.balls import make_ball, per_image, unit
from robust_core.attacks.checks import check_generator, check_start
from robust_core.errors import unknown_name

__all__ = ["NORMAL_START_SCALE", "STARTS", "draw_start", "source_of", "start_source"]

STARTS = ("uniform", "normal")
NORMAL_START_SCALE = 0.001


def source_of(generator: torch.Generator | None) -> torch.Generator:
    """Return the given source of randomness; none means a fresh one with seed 0."""
    check_generator(generator)
    return torch.Generator().manual_seed(0) if generator is None else generator


def draw_start(
    images: Tensor,
    *,
    eps: float | Tensor,
    kind: str,
    generator: torch.Generator,
    norm: str = "linf",
    clip: bool = True,
) -> Tensor:
    """Return random starts ``(N, ...)``: ``uniform`` in the ball, or ``normal``: 0.001 N(0, 1) off the image.

    Drawn in float32 on the generator's device, so that both precisions and all devices see one noise.
    ``clip=False`` leaves them outside of [0, 1] and, if normal, of the ball, as some published attacks do.
    """
    device = generator.device
    if kind == "normal":
        noise = torch.randn(images.shape, generator=generator, device=device).to(images)
        points = images + NORMAL_START_SCALE * noise
    elif norm == "linf":
        noise = torch.rand(images.shape, generator=generator, device=device).to(images)
        points = images + per_image(eps, images) * (2.0 * noise - 1.0)
    else:
        direction = torch.randn(images.shape, generator=generator, device=device).to(images)
        share = torch.rand(images.shape[0], generator=generator, device=device).to(images)
        length = per_image(eps, images) * per_image(share ** (1.0 / images[0].numel()), images)
        points = images + length * unit(direction)
    return make_ball(images, eps, norm).project(points) if clip else points


def start_source(
    images: Tensor,
    eps: float | Tensor,
    *,
    random_start: str | bool,
    start: Tensor | None,
    norm: str,
    generator: torch.Generator | None,
) -> Callable[[], Tensor]:
    """Return the function that gives each run its start; no generator means a fresh one with seed 0."""
    check_generator(generator)
    if start is not None:
        check_start(start, images)
        given = start.detach().to(images.dtype)
        return lambda: given
    if random_start is False:
        return lambda: images.detach()
    kind = "uniform" if random_start is True else random_start
    if kind not in STARTS:
        raise unknown_name("random start", str(kind), STARTS)
    source = source_of(generator)
    return lambda: draw_start(images.detach(), eps=eps, kind=kind, generator=source, norm=norm)
