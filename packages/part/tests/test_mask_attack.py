"""PGD within the run's masks: the budgets of the masks, and nothing of the worst case."""

from __future__ import annotations

import pytest
import torch
from runs import image_set, small_model

from part.config import resolve
from part.mask_attack import PGD_IN_MASKS, mask_protocol, mask_runner
from part.masks import MaskRule
from robust_core.attacks import pgd
from robust_core.evaluation import evaluate
from robust_core.models import FrozenView

EPS, LOW, COUNT = 8 / 255, 2 / 255, 12


def attacked(monkeypatch, rule, *, batch_size=COUNT, low_eps=LOW):
    """Return the evaluation, and images, budgets and adversarial images of every batch."""
    calls = []

    def kept(network, images, labels, **settings):
        made = pgd(network, images, labels, **settings)
        calls.append((images, settings["eps"].expand_as(images), settings["start"], made))
        return made

    monkeypatch.setattr("part.mask_attack.pgd", kept)
    found = evaluate(
        small_model().eval(),
        image_set(),
        mask_protocol(eps=EPS, low_eps=low_eps, step_size=2 / 255),
        limit=COUNT,
        batch_size=batch_size,
        runners={PGD_IN_MASKS: mask_runner(rule)},
    )
    return found, [torch.cat(parts) for parts in zip(*calls, strict=True)]


@pytest.mark.parametrize("control", ["none", "random", "uniform"])
@pytest.mark.parametrize("rule", ["cam", "jet"])
def test_each_pixel_has_the_budget_of_the_networks_own_mask(monkeypatch, rule, control):
    made = MaskRule("gradcam", rule, "predicted", control)
    found, (images, eps, start, adversarial) = attacked(monkeypatch, made)
    (name,) = found.last
    assert (found.runs[name].forward, found.runs[name].backward) == (21 * COUNT, 20 * COUNT)
    for points in (start, adversarial):
        assert bool(((points - images).abs() <= eps + 1e-6).all())
    if control == "none":
        mask = made.masks(FrozenView(small_model().eval()), images, found.labels)[0].expand_as(images)
        assert torch.equal(eps, torch.where(mask, EPS, LOW))
    if control != "uniform":
        assert {round(float(value) * 255) for value in eps.unique()} == {2, 8}


def test_the_batches_do_not_matter(monkeypatch):
    rule = MaskRule(control="random")
    one, few = (attacked(monkeypatch, rule, batch_size=size)[1] for size in (COUNT, 5))
    assert torch.equal(one[1], few[1])
    assert torch.equal(one[2], few[2])


def test_masks_that_change_nothing_leave_pgd_in_the_ball(monkeypatch):
    _, (_, eps, _, _) = attacked(monkeypatch, MaskRule(), low_eps=EPS)
    assert bool((eps == torch.tensor(EPS)).all())


@pytest.mark.parametrize(
    ("settings", "there"),
    [
        ({}, True),
        ({"method": "at"}, False),
        ({"pre_trained": True, "mask_refresh": "batch"}, False),
        ({"epochs": 3, "warm_up": 3}, False),
    ],
)
def test_only_runs_with_masks_have_it(settings, there):
    assert resolve(settings)[0].makes_masks is there
