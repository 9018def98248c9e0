"""The sides of a speed comparison: what is compared is the same, passes are counted, rounds are planned."""

from __future__ import annotations

import doctest

import pytest
import torch
from benchmarks.speed import ancra_step, clock, negatives

from ancra.contrast import asymmetric_contrast
from ancra.negatives import STRATEGIES, pick_negatives
from ancra.networks import build_network
from robust_core.data import load_dataset


def problem(count=40, classes=4):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (count,), generator=generator)
    return labels, torch.randn(count, classes, generator=generator)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_plain_choice_is_ours(strategy):
    assert negatives.agreement(pick_negatives, strategy, *problem()) == 1.0
    labels, logits = problem(6, 4)  # so few that some have no candidate
    chosen = negatives.published_pick(strategy, labels, logits, torch.Generator().manual_seed(0))
    assert all(labels[other] != own for other, own in zip(chosen, labels, strict=True))
    assert negatives.agreement(pick_negatives, strategy, labels, logits) == 1.0


def test_another_choice_would_show():
    def another(*arguments, **options):
        chosen = pick_negatives(*arguments, **options)
        return chosen._replace(indices=chosen.indices.roll(1, dims=0))

    assert all(negatives.agreement(another, strategy, *problem()) < 0.9 for strategy in STRATEGIES)


def test_without_a_compiler_the_plain_form_is_measured_alone(monkeypatch, capsys):
    monkeypatch.setattr(negatives, "can_compile", lambda device: (False, "no C++ compiler was found"))
    assert negatives._forms(torch.device("cpu")) == {"": pick_negatives}
    assert "no compiled rows" in capsys.readouterr().out


def test_the_plain_contrast_is_ours():
    _, natural = problem()
    _, other = problem()
    other = other.roll(1, dims=0).requires_grad_()
    plain, ours = negatives.published_contrast(natural, other), asymmetric_contrast(natural, other).mean()
    torch.testing.assert_close(plain, ours)
    torch.testing.assert_close(*(torch.autograd.grad(value, other)[0] for value in (plain, ours)))


@pytest.fixture
def sides():
    """Both sides of a step at the same weights."""
    data = load_dataset("shapes", split="test", seed=0)
    images, labels = data.pixels(slice(0, 16)), data.labels[:16]
    networks = [build_network("resnet8-s2", 10, seed=0).train() for _ in range(2)]
    for network in networks:
        network(images)  # norm statistics that fit
    ours = ancra_step.OurSide(networks[0], images, labels, 2, 10, torch.float32)
    return ours, ancra_step.Side(networks[1], images, labels, 2)


def counts(side, run):
    networks = [side.model, side.view.network] if isinstance(side, ancra_step.OurSide) else [side.model]
    with ancra_step.counted_passes(len(side.images), *networks) as seen:
        run()
    return dict(seen)


def test_passes_are_counted(sides):
    ours, published = sides
    attack = {"evaluation forward": 4, "evaluation backward": 4}
    training = {"training forward": 3, "training backward": 3}
    assert counts(ours, ours.step) == attack | training
    assert counts(ours, ours.attack_passes) == attack
    assert counts(ours, ours.training_passes) == training
    generator = torch.Generator().manual_seed(0)
    found = counts(published, lambda: ancra_step.published_step(published, generator))
    assert found == attack | training | {"evaluation forward": 7}


def test_both_sides_attack_alike(sides):
    assert ancra_step.agreement(*sides) >= 0.999


def test_the_clock_plans_rounds_and_pairs_them_as_its_examples_say():
    found = doctest.testmod(clock)
    assert (found.attempted, found.failed) == (2, 0)
