"""UDR: the soft ball and its attacks by hand, lambda learned over ten batches, the methods in the loop."""

from __future__ import annotations

import pytest
import torch
from grouped_runs import check_resume, grouped_run, one_phase, step_lines
from hypothesis import given
from hypothesis import strategies as st

from gdro_at.baselines.udr import KINDS, UDR, learned_lamda, pulled_back, soft_attack
from robust_core.errors import UserError

WEIGHTS = torch.tensor([[1.0, -2.0, 3.0], [-1.0, 2.0, -3.0]])


def linear(images):
    return images.flatten(1) @ WEIGHTS.to(images.dtype).T


def images_of(*values):
    return torch.tensor([values]).view(1, -1, 1, 1)


def attack(images, *, start=0.0, kind="uni", **changes):
    settings = {"eps": 0.1, "alpha": 0.04, "tau": 0.08, "lamda": 0.5, "steps": 1, **changes}
    labels = torch.zeros(len(images), dtype=torch.int64)
    return soft_attack(
        linear, images, labels, start=torch.full_like(images, start), kind=kind, **settings
    ).flatten()


def test_excess_is_pulled_back_by_a_share_within_valid_pixels():
    images = images_of(0.5, 0.5, 0.5, 0.9, 0.05)
    delta = torch.tensor([0.05, 0.3, -0.3, 0.3, -0.3]).view(1, -1, 1, 1)
    found = pulled_back(delta, images, eps=0.1, share=0.25).flatten()
    torch.testing.assert_close(found, torch.tensor([0.05, 0.25, -0.25, 0.1, -0.05]))


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20), st.floats(0, 1, width=32))
def test_pull_lies_between_the_point_and_its_projection(values, share):
    delta = torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
    images = torch.full_like(delta, 0.5)
    projected = delta.clamp(-0.1, 0.1)
    found = pulled_back(delta, images, eps=0.1, share=share)
    valid = delta.clamp(-0.5, 0.5)
    assert (found.abs() >= projected.abs() - 1e-12).all()
    assert (found.abs() <= valid.abs() + 1e-12).all()
    torch.testing.assert_close(pulled_back(delta, images, eps=0.1, share=1.0), projected)


def test_uni_by_hand():
    # of label 0 the cross-entropy rises against the first row of weights: signs -, +, -
    images = images_of(0.5, 0.5, 0.5)
    torch.testing.assert_close(attack(images), torch.tensor([-0.04, 0.04, -0.04]))
    # from 0.09: 0.05, 0.13 (0.03 beyond, a quarter of which is taken back), 0.05
    torch.testing.assert_close(attack(images, start=0.09), torch.tensor([0.05, 0.1225, 0.05]))
    # the second step: 0.01, 0.1625 - 0.015625, 0.01
    torch.testing.assert_close(attack(images, start=0.09, steps=2), torch.tensor([0.01, 0.146875, 0.01]))
    assert attack(images, steps=30).abs().max() > 0.1
    assert attack(images, steps=30, tau=0.02).abs().max() <= 0.1 + 1e-6  # lambda alpha / tau = 1


def test_two_halves_by_hand():
    images = images_of(0.5, 0.5, 0.5)
    # unimart: alpha along the cross-entropy, then alpha along MART's loss; both rise in the same direction
    torch.testing.assert_close(attack(images, kind="unimart"), torch.tensor([-0.08, 0.08, -0.08]))
    # the first half is held in the hard ball: 0.1, 0.1, 0.1 + 0.04, a quarter of 0.04 taken back
    found = attack(images, kind="unimart", steps=3)
    torch.testing.assert_close(found, torch.tensor([-0.13, 0.13, -0.13]))
    # unitrades: eps / steps, then alpha, away from the natural prediction on the side of the start
    for start, sign in ((1e-3, 1.0), (-1e-3, -1.0)):
        lifted = torch.tensor([1.0, -2.0, 3.0]).sign() * sign
        found = attack(images, start=start, kind="unitrades", steps=1, eps=0.05)
        expected = (start + 0.05 * lifted).clamp(-0.05, 0.05) + 0.04 * lifted
        torch.testing.assert_close(found, expected - 0.25 * (expected - expected.clamp(-0.05, 0.05)))


def test_unknown_kind_and_impossible_tau_are_refused():
    with pytest.raises(UserError, match="Unknown kind 'unitrade'; did you mean 'unitrades'"):
        attack(images_of(0.5, 0.5, 0.5), kind="unitrade")
    with pytest.raises(UserError, match="Unknown kind"):
        UDR("UDR", "nui", 0.1)
    with pytest.raises(UserError, match="tau is 0"):
        UDR("UDR", "uni", 0.1, tau=0.0)


def test_lamda_grows_where_perturbations_exceed_eps():
    assert learned_lamda(1.0, rate=0.5, eps=0.1, mean_size=0.3) == pytest.approx(1.1)
    assert learned_lamda(1.0, rate=0.5, eps=0.1, mean_size=0.04) == pytest.approx(0.97)


def udr(kind="uni", **changes):
    return UDR("UDR", kind, 8 / 255, steps=1, **changes)


def test_lamda_is_learned_every_ten_batches(tmp_path):
    run = grouped_run(tmp_path, one_phase(lambda: udr(lr_tau=2.0), 22))
    run.fit()
    lines = step_lines(run)
    lamda = [line["lamda"] for line in lines]
    sizes = [line["perturbation"] for line in lines]
    first = 1 - 2.0 * (8 / 255 - sum(sizes[:10]) / 10)
    second = first - 2.0 * (8 / 255 - sum(sizes[10:20]) / 10)
    expected = [1.0] * 10 + [first] * 10 + [second] * 2
    assert lamda == pytest.approx(expected, rel=1e-5)
    assert lamda[10] != lamda[9]


def test_a_rate_of_zero_keeps_lamda(tmp_path):
    run = grouped_run(tmp_path, one_phase(lambda: udr(lr_tau=0.0, lamda=0.3), 11))
    run.fit()
    assert {round(line["lamda"], 6) for line in step_lines(run)} == {0.3}


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted(tmp_path, kind):
    whole = check_resume(tmp_path, one_phase(lambda: udr(kind, lr_tau=2.0), 12), stop=7)
    assert step_lines(whole)[-1]["lamda"] != 1.0


def test_the_start_is_uniform_in_the_ball_or_as_told(tmp_path):
    sizes = {}
    for start in (None, 0.01):
        run = grouped_run(
            tmp_path / str(start), one_phase(lambda s=start: udr(start=s, alpha=0.0, tau=1.0), 1)
        )
        run.fit()
        sizes[start] = step_lines(run)[0]["perturbation"]
    # half of the radius on average, less what valid pixels cut off
    assert 0.85 * 4 / 255 < sizes[None] < 4 / 255
    assert 0.85 * 0.005 < sizes[0.01] < 0.005
