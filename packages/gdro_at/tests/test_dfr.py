"""DFR: halves of the validation split, balanced draws, a phase that leaves the trunk as it is, to the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from grouped_runs import check_resume, grouped_run, grouped_set, step_lines
from runs import constant, weights_of

from gdro_at.attacks import TrainingAttack
from gdro_at.baselines.dfr import DFR, balanced_draw, last_layer, validation_halves
from gdro_at.networks import build_network
from robust_core.errors import UserError
from robust_core.models import build_model
from robust_core.randomness import generator_for
from robust_core.training import Phase
from robust_core.training.methods import Natural

VALIDATION = (9, 5, 4, 6)
ATTACK = TrainingAttack(8 / 255, steps=1, objective="ce")


@pytest.fixture
def validation():
    return grouped_set(VALIDATION, seed=5, split="validation")


def phases(attack=None, steps=4):
    return lambda: [
        Phase("main", Natural(), 3, constant(0.02)),
        Phase("last layer", DFR("DFR", attack=attack), steps, constant(0.1)),
    ]


def test_halves_are_disjoint_whole_and_stratified(validation):
    first, second = validation_halves(validation, 3)
    assert torch.bincount(first.groups).tolist() == [5, 3, 2, 3]
    assert torch.bincount(second.groups).tolist() == [4, 2, 2, 3]
    together = torch.cat([first.indices, second.indices])
    assert together.sort().values.tolist() == list(range(len(validation)))
    for half in (first, second):
        assert torch.equal(half.indices, half.indices.sort().values)
        assert torch.equal(half.images, validation.images[half.indices])


def test_halves_are_a_function_of_the_seed(validation):
    first, again, other = (validation_halves(validation, seed)[0].indices for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_groups_the_halves_have_equal_shares_of_the_classes(validation):
    first, second = validation_halves(replace(validation, groups=None), 3)
    assert torch.bincount(first.labels).tolist() == [7, 5]
    assert torch.bincount(second.labels).tolist() == [7, 5]
    with pytest.raises(UserError, match=r"no group has two \(images in all: 0\)"):
        validation_halves(validation.subset(torch.arange(0)), 1)


def test_draws_are_balanced_over_the_units_that_are_there():
    units = torch.tensor([0] * 50 + [1] * 5 + [3] * 2)
    drawn = balanced_draw(units, 6000, generator_for(1, "test"))
    shares = torch.bincount(units[drawn], minlength=4) / 6000
    torch.testing.assert_close(shares, torch.tensor([1, 1, 0, 1]) / 3, atol=0.03, rtol=0)
    within = torch.bincount(drawn[units[drawn] == 1])[50:55] / (units[drawn] == 1).sum()
    torch.testing.assert_close(within, torch.full((5,), 0.2), atol=0.05, rtol=0)


@pytest.mark.parametrize(("attack", "stop"), [(None, 3), (None, 6), (ATTACK, 5)])
def test_resumed_equals_uninterrupted(tmp_path, attack, stop, validation):
    lines = step_lines(check_resume(tmp_path, phases(attack), stop, validation))
    assert len(lines) == 7
    assert ("natural_accuracy" if attack is None else "adversarial_accuracy") in lines[-1]


@pytest.mark.parametrize("attack", [None, ATTACK], ids=["natural", "attacked"])
def test_trunk_and_statistics_do_not_move_and_the_layer_learns_anew(tmp_path, attack, validation):
    before = grouped_run(tmp_path / "before", phases(steps=0))
    before.fit()
    after = grouped_run(tmp_path / "after", phases(attack), validation=validation)
    after.fit()
    first, second = weights_of(before), weights_of(after)
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert moved == {"linear.weight", "linear.bias"}


def test_loss_is_that_of_the_new_layer_on_the_drawn_images(tmp_path, validation):
    run = grouped_run(tmp_path, phases(), validation=validation)
    method = run.phases[1].method
    (batch, *_) = run._batches(0, 0)
    context = run._context(3, 1, (0, 8), 8)
    old = weights_of(run)
    run.model.train()
    result = method.loss(run.model, batch, context)
    result.loss.backward()
    assert not torch.equal(old["linear.weight"], run.model.linear.weight)
    assert run.model.linear.weight.abs().max() <= run.model.linear.in_features**-0.5
    assert torch.equal(run.view(batch.images).argmax(1), run.model.eval()(batch.images).argmax(1))
    half = validation_halves(validation, run.settings.seed)[0]
    generator = generator_for(run.settings.seed, "last layer draw", 1, 3)
    rows = balanced_draw(half.groups, 8, generator)
    expected = F.cross_entropy(run.model.eval()(half.pixels(rows)), half.labels[rows])
    torch.testing.assert_close(result.loss, expected)
    with_gradient = {name for name, value in run.model.named_parameters() if value.grad is not None}
    assert with_gradient == {"linear.weight", "linear.bias"}
    # later steps go on from the layer as it is
    begun = run.model.linear.weight.detach().clone()
    method.loss(run.model, batch, run._context(4, 1, (0, 8), 8))
    assert torch.equal(begun, run.model.linear.weight)


def test_processes_and_pieces_share_the_draw(tmp_path, validation):
    run = grouped_run(tmp_path, phases(), validation=validation)
    method = run.phases[1].method
    (batch, *_) = run._batches(0, 0)
    whole, labels = method._draw(batch, run._context(3, 1, (0, 8), 8))
    parts = [method._draw(batch, run._context(3, 1, rows, 8)) for rows in ((0, 3), (3, 8))]
    assert torch.equal(torch.cat([part[0] for part in parts]), whole)
    assert torch.equal(torch.cat([part[1] for part in parts]), labels)


@pytest.mark.parametrize("images", [None, 0])
def test_no_validation_images_is_refused(tmp_path, images, validation):
    none = None if images is None else validation.subset(torch.arange(0))
    run = grouped_run(tmp_path, phases(), validation=none)
    with pytest.raises(UserError, match="DFR trains the last layer on validation images, but there are none"):
        run.fit()


def test_a_head_that_is_not_pooling_and_linear_is_refused():
    with pytest.raises(UserError, match="last layer of Linear cannot be trained anew"):
        last_layer(torch.nn.Linear(2, 2))
    assert last_layer(build_model("resnet8-s2", 2, seed=1)).out_features == 2
    pre18 = build_network("pre18", 2, image_size=224, mean=None, std=None, seed=1)
    assert last_layer(pre18) is pre18.linear
