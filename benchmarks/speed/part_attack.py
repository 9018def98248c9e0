"""(a) PART's attack of ten steps against the published loop, written plainly."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.speed.contest import Contender, contest
from benchmarks.speed.rows import Row
from benchmarks.speed.setting import EPS, LOW_EPS, STEP_SIZE, Setting
from robust_core.attacks import pgd
from robust_core.models import FrozenView
from robust_core.randomness import generator_for

__all__ = ["compare", "published_attack"]


def published_attack(
    network: nn.Module, images: Tensor, labels: Tensor, start: Tensor, budget: Tensor, steps: int
) -> Tensor:
    """Return the images of PART's training attack as published: ``backward`` through everything."""
    adversarial = start.clone()
    for _ in range(steps):
        adversarial.requires_grad_(True)
        network.zero_grad()
        loss = nn.functional.cross_entropy(network(adversarial), labels)
        loss.backward()
        assert adversarial.grad is not None
        moved = adversarial.detach() + STEP_SIZE * adversarial.grad.sign()
        change = torch.max(torch.min(moved - images, budget), -budget)
        adversarial = torch.clamp(images + change, 0.0, 1.0)
    network.zero_grad()
    return adversarial


def _ours(view: FrozenView, setting: Setting, start: Tensor, budget: Tensor, steps: int) -> Tensor:
    view.refresh()  # once per training step, so it counts
    return pgd(
        view, setting.images, setting.labels, eps=budget, step_size=STEP_SIZE, steps=steps, start=start
    )


def compare(setting: Setting) -> list[Row]:
    """Return one row per precision."""
    images = setting.images
    generator = generator_for(0, "speed-part")
    noise = torch.rand(images.shape, generator=generator).mul_(2 * EPS).sub_(EPS).to(images.device)
    full = torch.rand(images.shape, generator=generator).to(images.device) < 0.27  # the density of real masks
    budget = torch.where(full, EPS, LOW_EPS)
    start = images + noise
    ours = {name: partial(_ours, view, setting, start, budget) for name, view in setting.views.items()}
    published = Contender(
        "published loop", partial(published_attack, setting.network, images, setting.labels, start, budget)
    )
    low = 6.0 if setting.matrix_units else 4.0
    targets = {name: 2.0 if name.startswith("float32") else low for name in ours}
    return contest("a", setting, ours, [published], targets=targets, seconds=0.28 * setting.seconds)
