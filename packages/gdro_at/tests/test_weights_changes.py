"""The projection is optimal, and every single change differs from the corrected rule where it should, only there."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from gdro_at.units import UnitMeans
from gdro_at.weights import OFFICIAL_AXES, GroupRule, RuleState, kl_projection, single_changes, step

QUICK = settings(max_examples=40, deadline=None)
COUNTS = (3498.0, 184.0, 56.0, 1057.0)
RULE = GroupRule(
    COUNTS,
    generalization_adjustment=(2.0,),
    robust_step_size=0.3,
    train_grad=True,
    limit_nat=True,
    limit_adv=True,
    limit_eps=0.6,
)
# two batches, so that running means differ from losses
WHOLE = [
    ([0.3, 1.9, 2.2, 0.6], [0.4, 0.9, 0.2, 1.3], [4, 4, 4, 4]),
    ([0.2, 1.5, 2.5, 0.5], [0.3, 5.0, 0.3, 1.1], [3, 5, 2, 6]),
]
GAPS = [*WHOLE, ([0.4, 0.0, 2.0, 0.0], [0.2, 0.0, 0.5, 0.0], [8, 0, 8, 0])]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def run(rule, rows):
    state = RuleState.start(rule, torch.float64)
    for natural, adversarial, members in rows:
        counts = tensor(members)
        result = step(rule, state, UnitMeans(tensor(natural), counts), UnitMeans(tensor(adversarial), counts))
        state = result.state
    return result


@QUICK
@given(st.lists(st.floats(-40, 40), min_size=1, max_size=8), st.sampled_from([0.0, 0.2, 0.5, 0.99, 1.0, 3.0]))
def test_projection_keeps_bounds_sum_and_ratios(logs, kappa):
    units = len(logs)
    lower, upper = max(0.0, (1 - kappa) / units), (1 + kappa) / units
    weights = kl_projection(tensor(logs), lower, upper)
    assert abs(float(weights.sum()) - 1) < 1e-12
    assert lower - 1e-15 <= float(weights.min())
    assert float(weights.max()) <= upper + 1e-15
    # clip(s w): whatever is not at a bound has one scale; at the lower bound it is not smaller, at the upper not larger
    scales = weights.clamp(min=1e-300).log() - tensor(logs)
    free = (weights > lower) & (weights < upper)
    if free.any():
        scale = scales[free]
        assert float(scale.max() - scale.min()) < 1e-9
        assert (scales[weights <= lower] >= scale.min() - 1e-9).all()
        assert (scales[weights >= upper] <= scale.max() + 1e-9).all()


@pytest.mark.parametrize("seed", range(6))
def test_projection_is_the_nearest_point(seed):
    rng = np.random.default_rng(seed)
    units = int(rng.integers(2, 6))
    weights = rng.dirichlet(np.full(units, 0.5)) + 1e-4
    weights /= weights.sum()
    lower, upper = 0.6 / units, 1.4 / units
    found = kl_projection(torch.from_numpy(weights).log(), lower, upper).numpy()
    solution = minimize(
        lambda q: np.sum(q * np.log(q / weights)),
        np.full(units, 1 / units),
        jac=lambda q: np.log(q / weights) + 1,
        bounds=[(lower, upper)] * units,
        constraints={"type": "eq", "fun": lambda q: q.sum() - 1, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    np.testing.assert_allclose(found, solution.x, atol=1e-6)
    assert np.sum(found * np.log(found / weights)) <= solution.fun + 1e-12


def test_projection_of_members_fills_what_is_left_to_them():
    members = torch.tensor([True, False, True, True])
    weights = kl_projection(tensor([3.0, 99.0, 0.0, -2.0]), 0.2, 0.3, members=members, total=0.72)
    torch.testing.assert_close(weights, tensor([0.3, 0.0, 0.22, 0.2]))


def test_projection_in_float32_is_exact_to_rounding():
    logs = torch.linspace(-60, 60, 200)
    weights = kl_projection(logs, 0.2 / 200, 1.8 / 200)
    assert float(weights.double().sum()) == pytest.approx(1, abs=2e-6)


ONLY_P = {"minus sign", "p uniform", "p = q"}
ONLY_SCALE = {"sum", "factor 4"}
ONLY_Q = {"published multiplications"}


def differs(one, other):
    return not torch.allclose(one, other, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", single_changes(RULE))
def test_a_single_change_changes_what_it_names(name):
    changed = single_changes(RULE)[name]
    corrected, found = run(RULE, WHOLE), run(changed, WHOLE)
    touched = {
        field.name for field in fields(RULE) if getattr(changed, field.name) != getattr(RULE, field.name)
    }
    assert touched
    assert touched <= set(OFFICIAL_AXES) | {"limit_nat", "limit_adv"}
    natural, adversarial = (
        differs(getattr(corrected, weights), getattr(found, weights))
        for weights in ("natural_weights", "adversarial_weights")
    )
    # the batches lack no unit
    if name == "absent units moved":
        assert (natural, adversarial) == (False, False)
        assert differs(run(RULE, GAPS).natural_weights, run(changed, GAPS).natural_weights)
        assert differs(run(RULE, GAPS).adversarial_weights, run(changed, GAPS).adversarial_weights)
    elif name == "running mean of the log":
        # the rules part only where unit 0 was not seen
        assert (natural, adversarial) == (False, False)
        late = [([0.0, *row[0][1:]], row[1], [0, 4, 4, 4]) for row in WHOLE]
        assert differs(run(RULE, late).natural_weights, run(changed, late).natural_weights)
        assert not differs(run(RULE, late).adversarial_weights, run(changed, late).adversarial_weights)
    elif name in ONLY_SCALE | ONLY_P:
        assert (natural, adversarial) == (False, True)
    elif name in ONLY_Q:
        assert (natural, adversarial) == (True, False)
    else:
        assert (natural, adversarial) == (True, True)
    if name in ONLY_SCALE:
        torch.testing.assert_close(found.adversarial_weights, 4 * corrected.adversarial_weights)
        torch.testing.assert_close(found.state.adversarial_weights, corrected.state.adversarial_weights)


def test_weights_of_the_adversarial_part():
    uniform = run(replace(RULE, adv_weights="uniform"), WHOLE)
    assert uniform.adversarial_weights.tolist() == [0.25] * 4
    natural = run(replace(RULE, adv_weights="natural"), WHOLE)
    assert torch.equal(natural.adversarial_weights, natural.natural_weights)
    greedy = run(replace(RULE, adv_weights="natural", weighting="greedy"), WHOLE)
    assert torch.equal(greedy.adversarial_weights, greedy.natural_weights)


def test_sum_of_the_adversarial_part_is_the_sum_of_unit_means():
    rule = replace(RULE, adv_scale="sum", adv_weights="uniform")
    assert float(run(rule, WHOLE).robust_term) == pytest.approx(sum(WHOLE[-1][1]))


def test_a_clip_before_the_last_multiplication_does_not_bound():
    lower, upper = RULE.bounds
    clipped = run(replace(RULE, bound="clip"), WHOLE).natural_weights
    assert float(clipped.max()) > upper or float(clipped.min()) < lower
    first = WHOLE[:1]
    rule = replace(RULE, bound="clip", train_grad=False)
    raised = (0.3 * (tensor(first[0][0]) + 2 / tensor(COUNTS).sqrt())).exp() / 4
    torch.testing.assert_close(run(rule, first).natural_weights, raised / raised.sum())


def test_published_multiplications_by_hand():
    rule = replace(RULE, updates="published", limit_nat=False)
    shift = 2 / tensor(COUNTS).sqrt()
    (first, _, few), (second, _, many) = WHOLE
    a, b = tensor(first) + shift, tensor(second) + shift
    mean = (tensor(few) * a + tensor(many) * b) / (tensor(few) + tensor(many))
    wanted = torch.softmax(0.3 * (3 * a + 2 * b + mean), dim=0)
    torch.testing.assert_close(run(rule, WHOLE).natural_weights, wanted)
    plain = torch.softmax(0.3 * (2 * a + 2 * b), dim=0)
    torch.testing.assert_close(run(replace(rule, train_grad=False), WHOLE).natural_weights, plain)


def test_absent_units_that_move_take_their_adjustment():
    rule = GroupRule(COUNTS, generalization_adjustment=(2.0,), robust_step_size=0.3, absent="moved")
    shift = 2 / tensor(COUNTS).sqrt()
    wanted = torch.softmax(0.3 * (tensor([1.0, 0.0, 0.0, 0.0]) + shift), dim=0)
    found = run(rule, [([1.0, 0.0, 0.0, 0.0], [0.0] * 4, [9, 0, 0, 0])])
    torch.testing.assert_close(found.natural_weights, wanted)


def test_official_is_every_axis_at_once():
    official = RULE.official()
    for name, value in OFFICIAL_AXES.items():
        assert getattr(official, name) == value
    settings = {field.name for field in fields(RULE)} - set(OFFICIAL_AXES)
    assert all(getattr(official, name) == getattr(RULE, name) for name in settings)
    assert float(run(official, WHOLE).shift.min()) > 0
