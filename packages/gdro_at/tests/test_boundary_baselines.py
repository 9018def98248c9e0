"""BAT: both searches by hand on a line, their properties, the loss by formula, the method in the loop."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from grouped_runs import check_resume, grouped_run, one_phase, step_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from gdro_at.attacks import TrainingAttack
from gdro_at.baselines.bat import BAT, bat_terms, first_adversarial, last_clean, published_order

EPS, STEP = 0.1, 0.025


def on_a_line(points):
    """Predict class 1 above 0.43; the logits' difference is 10 (x - 0.43)."""
    margin = 10 * (points.flatten(1).mean(dim=1) - 0.43)
    return torch.stack([torch.zeros_like(margin), margin], dim=1)


def walk(kind, images, labels, *, network=on_a_line, start=None, steps=6, **changes):
    images = torch.tensor(images).view(-1, 1, 1, 1) if isinstance(images, list) else images
    search = last_clean if kind == "last" else first_adversarial
    return search(
        network,
        images,
        torch.as_tensor(labels),
        start=images - 0.001 if start is None else start,
        natural_logits=network(images),
        eps=EPS,
        step_size=STEP,
        steps=steps,
        **changes,
    )


def flat(result):
    return result.images.flatten().tolist()


# The walk from 0.5 visits 0.499, 0.474, 0.449, 0.424, 0.4, 0.4: wrong from its fourth point on.


def test_last_clean_is_the_iterate_before_the_first_wrong_one():
    for official in (False, True):
        result = walk("last", [0.5, 0.9], [1, 1], official=official)
        assert flat(result) == pytest.approx([0.449, 0.8])
        assert result.exits.tolist() == [3, -1]


def test_first_adversarial_pardons_tau_times():
    for tau, point, exit_iteration in ((0, 0.424, 3), (1, 0.4, 4), (2, 0.4, 5), (3, 0.4, 6)):
        result = walk("first", [0.5, 0.9], [1, 1], tau=tau)
        assert flat(result) == pytest.approx([point, 0.8])
        assert result.exits.tolist() == [exit_iteration, -1]
    assert walk("first", [0.5], [1], tau=3, official=True).exits.tolist() == [-1]


def test_wrong_iterates_need_not_follow_each_other():
    def comb(points):
        """Wrong at the second and the fourth point of the walk."""
        x = points.flatten(1).mean(dim=1)
        wrong = ((x - 0.474).abs() < 0.01) | ((x - 0.424).abs() < 0.01)
        return torch.stack([wrong * 2.0, 10 * (x - 0.5) + 1.5], dim=1)

    result = walk("first", [0.5], [1], network=comb)
    assert result.exits.tolist() == [3]
    assert flat(result) == pytest.approx([0.424])


def test_wrong_at_the_start_gives_the_clean_image_back():
    assert flat(walk("last", [0.5], [0])) == pytest.approx([0.5])
    assert flat(walk("last", [0.5], [0], official=True)) == pytest.approx([0.499])
    assert walk("last", [0.5], [0]).exits.tolist() == [0]
    assert flat(walk("first", [0.5], [0])) == pytest.approx([0.474])  # wrong twice


def test_images_that_stay_are_examined_once_more():
    corrected, official = (walk("last", [0.5], [1], steps=3, official=flag) for flag in (False, True))
    assert flat(corrected) == pytest.approx([0.449])
    assert flat(official) == pytest.approx([0.424])  # wrong, and called clean
    assert (corrected.exits.item(), official.exits.item()) == (3, -1)
    first = walk("first", [0.5], [1], steps=3, tau=0)
    assert flat(first) == pytest.approx([0.424])
    assert first.exits.tolist() == [3]


def test_values_are_those_of_the_images_that_are_left():
    result = walk("last", [0.5, 0.9], [1, 1])
    path = torch.tensor([0.499, 0.474, 0.449, 0.424]).view(-1, 1, 1, 1)
    natural = on_a_line(torch.full_like(path, 0.5))
    expected = F.kl_div(F.log_softmax(on_a_line(path), 1), F.softmax(natural, 1), reduction="none").sum(1)
    torch.testing.assert_close(result.values[:4, 0], expected, rtol=1e-3, atol=1e-6)
    assert (result.values[4:, 0] == 0).all()
    assert (result.values[:, 1] > 0).all()


def test_no_step_at_all():
    assert flat(walk("last", [0.5], [1], steps=0)) == pytest.approx([0.499])
    assert walk("first", [0.5], [1], steps=0, official=True).values.shape == (0, 1)


def linear(weights):
    return lambda images: images.flatten(1) @ weights.T


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["last", "first"]))
def test_properties_on_linear_networks(seed, kind):
    generator = torch.Generator().manual_seed(seed)
    network = linear(torch.randn(3, 12, generator=generator))
    images = torch.rand(7, 3, 2, 2, generator=generator)
    labels = network(images).argmax(dim=1)
    labels[:2] = (labels[:2] + 1) % 3  # wrong at the start
    start = (images + 0.003 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    result = walk(kind, images, labels, network=network, start=start)
    right = network(result.images).argmax(dim=1) == labels
    assert (result.images - images).abs().max() <= EPS + 1e-6
    assert 0 <= result.images.min() <= result.images.max() <= 1
    if kind == "last":
        at_start = network(start).argmax(dim=1) == labels
        assert right[at_start].all()
        assert torch.equal(result.images[~at_start], images[~at_start])
    else:
        assert not right[result.exits >= 0].any()
    order = torch.randperm(7, generator=generator)
    permuted = walk(kind, images[order], labels[order], network=network, start=start[order])
    torch.testing.assert_close(permuted.images, result.images[order])
    assert torch.equal(permuted.exits, result.exits[order])


def test_published_order_is_that_of_leaving():
    assert published_order(torch.tensor([-1, 2, 2, -1, 1])).tolist() == [4, 1, 2, 0, 3]


def test_terms_by_formula():
    generator = torch.Generator().manual_seed(0)
    last, first, clean = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0])
    terms = bat_terms(last, first, clean, labels)
    p_last, p_first, p_clean = (logits.softmax(1) for logits in (last, first, clean))
    torch.testing.assert_close(terms.clean, -p_last[range(5), labels].log())
    torch.testing.assert_close(terms.robust, (p_clean * (p_clean / p_first).log()).sum(1))
    uniform = sum((p * (p / 0.25).log()).sum(1) for p in (p_last, p_first))
    torch.testing.assert_close(terms.uniform, uniform)
    flat_logits = torch.full((2, 4), 7.0)
    assert bat_terms(flat_logits, flat_logits, flat_logits, labels[:2]).uniform.abs().max() < 1e-6
    far = torch.tensor([[1e4, -1e4]])
    assert all(torch.isfinite(part).all() for part in bat_terms(far, -far, far, torch.tensor([1])))


def bat(**changes):
    return BAT("BAT", TrainingAttack(8 / 255, steps=2, step_size=4 / 255), **changes)


@pytest.mark.parametrize("changes", [{}, {"official": True}, {"uniform_term": False}])
def test_resumed_equals_uninterrupted(tmp_path, changes):
    whole = check_resume(tmp_path, one_phase(lambda: bat(**changes)), stop=3)
    lines = step_lines(whole)
    assert len(lines) == 5
    for line in lines:
        parts = line["last_clean_loss"] + 6 * line["robust_loss"]
        parts += 0 if "uniform_term" in changes else line["uniform_loss"]
        assert line["loss"] == pytest.approx(parts, rel=1e-5)
        assert math.isfinite(line["loss"])


def test_official_differs_in_rounding_alone_where_no_image_moves_the_search(tmp_path):
    values = {}
    for official in (False, True):
        attack = TrainingAttack(8 / 255, steps=0, noise=0.001)  # both return the start
        run = grouped_run(
            tmp_path / str(official), one_phase(lambda a=attack, o=official: BAT("BAT", a, official=o), 1)
        )
        run.fit()
        values[official] = step_lines(run)[0]
    shared = ("robust_loss", "uniform_loss", "natural_accuracy", "adversarial_accuracy")
    for name in shared:
        assert values[False][name] == pytest.approx(values[True][name], rel=1e-2, abs=1e-6)


def test_settings_are_in_the_key():
    assert repr(bat()) != repr(bat(uniform_term=False)) != repr(bat(tau=2))
