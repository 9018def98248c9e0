"""PGD within the budgets of a run's own masks: the second reading of the evaluation (the first: the full budget).

It may do less than the published attacks, whose worst case it therefore does not join.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from part.masks import MaskRule
from robust_core.attacks import draw_start, pgd
from robust_core.evaluation import AttackCall, Member, Protocol, Runner
from robust_core.randomness import generator_for

__all__ = ["PGD_IN_MASKS", "mask_protocol", "mask_runner"]

PGD_IN_MASKS = "pgd-20-mask"


def mask_protocol(*, eps: float, low_eps: float, step_size: float) -> Protocol:
    """Return PGD-20 with ``eps`` where the mask is set and ``low_eps`` elsewhere, alone; its kind is its name."""
    settings = {"eps": eps, "low_eps": low_eps, "step_size": step_size, "steps": 20}
    return Protocol(PGD_IN_MASKS, (Member(PGD_IN_MASKS, PGD_IN_MASKS, settings),))


def mask_runner(rule: MaskRule) -> Runner:
    """Return the attack for ``evaluate(..., runners={PGD_IN_MASKS: ...})``, masks from the attacked network's own maps.

    Starts and random masks are functions of (seed, member, image), as those of other attacks are.
    """

    def attack(call: AttackCall) -> Tensor:
        images, options = call.images, dict(call.settings)
        draws = [
            torch.rand(rule.shape(images[:1]), generator=generator_for(call.seed, "mask-control", index))
            for index in call.indices
        ]
        masks, _ = call.network.passing(
            partial(rule.masks, call.network.view),
            images,
            labels=call.labels,
            draw=torch.cat(draws).to(images),
        )
        budget = rule.budget(masks, eps=options.pop("eps"), low_eps=options.pop("low_eps"))
        starts = [
            draw_start(
                image, eps=own, kind="uniform", generator=generator_for(call.seed, call.purpose, index)
            )
            for image, own, index in zip(
                images.cpu().split(1), budget.cpu().split(1), call.indices, strict=True
            )
        ]
        start = torch.cat(starts).to(images)
        return pgd(
            call.network, images, call.labels, eps=budget, start=start, observe=call.observe, **options
        )

    return attack
