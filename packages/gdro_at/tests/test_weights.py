"""The corrected rules: formulas by hand, and what must hold whatever the losses."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_rules import Corrected

from gdro_at.units import UnitMeans
from gdro_at.weights import GroupRule, RuleState, cgd_weights, constants, greedy_weights, step
from robust_core.errors import UserError
from robust_core.randomness import generator_for

COUNTS = (3498.0, 184.0, 56.0, 1057.0)
GDRO_AT = {
    "generalization_adjustment": (2.0,),
    "robust_step_size": 0.3,
    "train_grad": True,
    "limit_nat": True,
    "limit_adv": True,
}
QUICK = settings(max_examples=40, deadline=None)


def corrected(**changes):
    return GroupRule(**{"training_counts": COUNTS, **GDRO_AT, **changes})


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def start(rule):
    return RuleState.start(rule, torch.float64)


@st.composite
def batches(draw, units=None):
    count = units or draw(st.integers(1, 6))
    loss = st.integers(0, 6000).map(lambda value: value / 1000)
    members = st.integers(0, 5)
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        present = draw(st.lists(members, min_size=count, max_size=count).filter(any))
        losses = [draw(st.lists(loss, min_size=count, max_size=count)) for _ in range(2)]
        rows.append((*[[v * (c > 0) for v, c in zip(row, present, strict=True)] for row in losses], present))
    return rows


def run(rule, rows, state=None):
    state = start(rule) if state is None else state
    results = []
    for natural, adversarial, members in rows:
        counts = tensor(members)
        result = step(rule, state, UnitMeans(tensor(natural), counts), UnitMeans(tensor(adversarial), counts))
        state = result.state
        results.append(result)
    return results


option = st.fixed_dictionaries(
    {
        "train_grad": st.booleans(),
        "use_normalized_loss": st.booleans(),
        "limit_nat": st.booleans(),
        "limit_adv": st.booleans(),
        "limit_eps": st.sampled_from([0.0, 0.2, 0.9, 1.0, 1.5]),
    }
)


@QUICK
@given(batches(), option, st.sampled_from([0.01, 0.3, 2.0]), st.data())
def test_formulas_by_hand(rows, options, eta, data):
    units = len(rows[0][0])
    counts = [float(n) for n in data.draw(st.lists(st.integers(1, 99), min_size=units, max_size=units))]
    adjustment = data.draw(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=units, max_size=units))
    rule = GroupRule(
        tuple(counts), generalization_adjustment=tuple(adjustment), robust_step_size=eta, **options
    )
    plain = Corrected(counts, adjustment, eta, **options)
    for row, result in zip(rows, run(rule, rows), strict=True):
        loss = plain.step(*row)
        torch.testing.assert_close(result.natural_weights, tensor(plain.q), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(result.adversarial_weights, tensor(plain.p), rtol=1e-10, atol=1e-12)
        assert float(result.loss) == pytest.approx(loss, rel=1e-10, abs=1e-12)
        assert not result.shift.any()


@QUICK
@given(batches(units=1), option)
def test_one_unit_is_the_plain_loss(rows, options):
    rule = GroupRule((50.0,), generalization_adjustment=(2.0,), robust_step_size=0.7, **options)
    for (natural, adversarial, _), result in zip(rows, run(rule, rows), strict=True):
        assert float(result.loss) == pytest.approx(natural[0] + adversarial[0], rel=1e-14)


@QUICK
@given(batches(units=4), option, st.permutations(range(4)), st.booleans())
def test_permuting_units_permutes_weights(rows, options, order, once):
    adjustment = (0.5, 0.0, 2.0, 1.0)
    axes = {"updates": "once" if once else "published", "bound": "projection" if once else "clip"}
    rule = GroupRule(COUNTS, generalization_adjustment=adjustment, **options, **axes)
    other = replace(
        rule,
        training_counts=tuple(COUNTS[k] for k in order),
        generalization_adjustment=tuple(adjustment[k] for k in order),
    )
    permuted = [tuple([row[k] for k in order] for row in batch) for batch in rows]
    for one, two in zip(run(rule, rows), run(other, permuted), strict=True):
        torch.testing.assert_close(one.natural_weights[list(order)], two.natural_weights)
        torch.testing.assert_close(one.adversarial_weights[list(order)], two.adversarial_weights)
        torch.testing.assert_close(one.loss, two.loss)


@QUICK
@given(batches(units=4), option)
def test_absent_units_are_untouched_and_weights_are_bounded_and_sum_to_one(rows, options):
    rule = GroupRule(COUNTS, generalization_adjustment=(2.0,), robust_step_size=1.5, **options)
    state = start(rule)
    lower, upper = rule.bounds
    for row in rows:
        (result,) = run(rule, [row], state)
        absent = tensor(row[2]) == 0
        for name in ("natural_weights", "adversarial_weights", "running_mean", "running_count", "average"):
            assert torch.equal(getattr(result.state, name)[absent], getattr(state, name)[absent]), name
        for weights, limited in (
            (result.natural_weights, rule.limit_nat),
            (result.adversarial_weights, rule.limit_adv),
        ):
            assert abs(float(weights.sum()) - 1) < 1e-12
            if limited:
                assert lower - 1e-12 <= float(weights.min())
                assert float(weights.max()) <= upper + 1e-12
        state = result.state


def test_the_worst_unit_gains_natural_and_adversarial_weight():
    rule = corrected(limit_nat=False, limit_adv=False, generalization_adjustment=(0.0,))
    losses = UnitMeans(tensor([0.1, 0.2, 3.0, 0.4]), torch.ones(4, dtype=torch.float64))
    result = step(rule, start(rule), losses, losses)
    for weights in (result.natural_weights, result.adversarial_weights):
        assert weights.argmax() == 2
        assert weights[2] > 0.25


def test_the_running_mean_forgets_at_the_reset_and_nothing_else_does():
    rule = corrected()
    rows = [([1.0, 2.0, 3.0, 4.0], [0.0] * 4, [1, 2, 3, 4]), ([2.0, 2.0, 0.0, 0.0], [0.0] * 4, [3, 2, 0, 0])]
    state = run(rule, rows)[-1].state
    shift = 2 / tensor(COUNTS).sqrt()
    torch.testing.assert_close(state.running_mean - shift, tensor([1.75, 2.0, 3.0, 4.0]))
    assert state.running_count.tolist() == [4, 4, 3, 4]
    fresh = state.reset()
    assert not fresh.running_mean.any()
    assert not fresh.running_count.any()
    for name in ("natural_weights", "adversarial_weights", "average", "seen"):
        assert torch.equal(getattr(fresh, name), getattr(state, name))


def test_large_losses_overflow_nothing():
    rule = GroupRule(COUNTS, robust_step_size=1.0, limit_nat=True)
    losses = UnitMeans(torch.tensor([1e4, 1.0, 2e4, 3.0]), torch.ones(4))
    for one in (rule, replace(rule, limit_nat=False)):
        weights = step(one, RuleState.start(one), losses).natural_weights
        assert weights.isfinite().all()
        assert float(weights.sum()) == pytest.approx(1, abs=1e-6)
        assert weights[2] == weights.max()
        assert (weights > 0).all()


@pytest.mark.parametrize("weighting", ["mean", "exponential", "greedy", "cgd"])
@pytest.mark.parametrize("official", [False, True])
def test_a_step_never_waits_for_the_device(weighting, official):
    # A meta tensor has no values: whatever asks for one (item, a branch on a tensor) fails.
    rule = corrected(weighting=weighting)
    rule = rule.official() if official else rule
    state = RuleState.start(rule, device="meta")
    means = UnitMeans(torch.ones(4, device="meta"), torch.ones(4, device="meta"))
    result = step(rule, state, means, means, gradients=torch.ones(4, 7, device="meta"))
    assert result.loss.device.type == "meta"
    assert result.loss.dtype == torch.float32


def test_nothing_given_is_changed_and_nothing_returned_carries_a_gradient():
    rule = corrected().official()
    means = torch.ones(4, dtype=torch.float64, requires_grad=True)
    losses = UnitMeans(means * 2, torch.ones(4, dtype=torch.float64))
    state = start(rule)
    before = {name: value.clone() for name, value in state.to_dict().items()}
    result = step(rule, state, losses, losses)
    assert torch.equal(losses.means, means * 2)
    assert all(torch.equal(value, before[name]) for name, value in state.to_dict().items())
    assert not any(value.requires_grad for value in result.state.to_dict().values())
    assert not result.loss.requires_grad


def test_the_plain_mean_counts_images_not_units():
    rule = corrected(weighting="mean")
    result = step(rule, start(rule), UnitMeans(tensor([1.0, 5.0, 0.0, 0.0]), tensor([3.0, 1.0, 0.0, 0.0])))
    assert result.natural_weights is None
    assert result.adversarial_weights is None
    assert float(result.loss) == 2


@pytest.mark.parametrize("alpha", [1.0, 1.5, 40.0])
@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_greedy_keeps_all_units_at_alpha_one_and_above(alpha, rho):
    fractions = tensor(COUNTS) / sum(COUNTS)
    reference = tensor([0.3, 2.0, 1.0, 0.5])
    weights = greedy_weights(reference, fractions, alpha=alpha, minimum_variational_weight=rho)
    torch.testing.assert_close(weights, fractions)


def test_greedy_by_hand():
    fractions = tensor([0.5, 0.1, 0.15, 0.25])
    weights = greedy_weights(tensor([1.0, 4.0, 3.0, 2.0]), fractions, alpha=0.4)
    torch.testing.assert_close(weights, tensor([0.0, 0.25, 0.375, 0.375]))
    raised = greedy_weights(
        tensor([1.0, 4.0, 3.0, 2.0]), fractions, alpha=0.4, minimum_variational_weight=0.2
    )
    torch.testing.assert_close(raised, 0.2 * fractions + 0.8 * weights)


def test_greedy_sorts_by_adjusted_averages():
    rule = corrected(weighting="greedy", alpha=0.001)
    equal = UnitMeans(torch.ones(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    assert step(rule, start(rule), equal).natural_weights.argmax() == COUNTS.index(min(COUNTS))


def cgd_by_hand(q, losses, gradients, prior, eta, present):
    units = range(len(q))
    dot = [
        [sum(a * b for a, b in zip(gradients[i], gradients[j], strict=True)) for j in units] for i in units
    ]
    exponents = []
    for i in units:
        total = 0.0
        for j in units:
            cosine = dot[i][j] / max((dot[i][i] * dot[j][j]) ** 0.5, 1e-3)
            total += (losses[i] * losses[j]) ** 0.5 * cosine * prior[j] * (present[i] and present[j])
        exponents.append(eta * total)
    mass = 1 - sum(w for w, there in zip(q, present, strict=True) if not there)
    raised = tensor(q) * tensor(exponents).exp()
    there = torch.tensor(present)
    raised = raised / raised[there].sum() * mass
    raised = raised.clamp(min=1e-5)
    return torch.where(there, raised / raised[there].sum() * mass, tensor(q))


@pytest.mark.parametrize("eta", [0.05, 5.0, 500.0])
@pytest.mark.parametrize("present", [[True] * 4, [True, False, True, True]])
def test_cgd_corrected_by_hand(eta, present):
    rule = corrected(weighting="cgd", robust_step_size=eta)
    state = start(rule)
    prior = (2 / tensor(COUNTS).sqrt()).exp()
    torch.testing.assert_close(state.natural_weights, prior / prior.sum())
    there = torch.tensor(present)
    losses = torch.where(there, tensor([0.2, 1.5, 0.7, 0.9]), 0)
    normal = torch.randn(4, 5, generator=generator_for(0, "cgd"), dtype=torch.float64)
    gradients = torch.where(there[:, None], normal, 0)
    counts = there.double()
    found = step(rule, state, UnitMeans(losses, counts), gradients=gradients)
    q = state.natural_weights.tolist()
    wanted = cgd_by_hand(q, losses.tolist(), gradients.tolist(), q, eta, present)
    torch.testing.assert_close(found.natural_weights, wanted)
    assert float(found.natural_weights.sum()) == pytest.approx(1, abs=1e-14)
    assert torch.equal(found.natural_weights[~there], state.natural_weights[~there])
    assert float(found.loss) == pytest.approx(float((wanted * losses).sum()))


def test_cgd_published_does_not_normalise_after_its_floor():
    rule = replace(
        corrected(weighting="cgd", robust_step_size=1e3).official(), generalization_adjustment=(0.0,)
    )
    losses, gradients = tensor([2.0, 0.1, 0.1, 0.1]), torch.eye(4, dtype=torch.float64)
    counts = torch.ones(4, dtype=torch.float64)
    weights = cgd_weights(rule, start(rule).natural_weights, losses, gradients, counts).weights
    assert float(weights.min()) == 1e-5
    assert float(weights.sum()) > 1 + 2e-5


def test_cgd_needs_gradients():
    rule = corrected(weighting="cgd")
    with pytest.raises(ValueError, match="needs the gradients"):
        step(rule, start(rule), UnitMeans(torch.ones(4), torch.ones(4)))


def test_state_goes_through_a_checkpoint(tmp_path):
    rule = corrected()
    rows = [([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0], [1, 2, 3, 4])] * 2
    state = run(rule, rows[:1])[-1].state
    torch.save(state.to_dict(), tmp_path / "state.pt")
    again = RuleState.from_dict(torch.load(tmp_path / "state.pt", weights_only=True), rule.units)
    one, two = (run(rule, rows[1:], each)[-1] for each in (state, again))
    assert torch.equal(one.loss, two.loss)
    for name, value in one.state.to_dict().items():
        assert torch.equal(value, two.state.to_dict()[name])


def test_a_state_of_other_data_is_refused():
    state = start(corrected()).to_dict()
    with pytest.raises(UserError, match="the data have 6 groups"):
        RuleState.from_dict(state, 6)
    del state["seen"]
    with pytest.raises(UserError, match="expected adversarial_weights, average"):
        RuleState.from_dict(state, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sign": "both"}, "sign is 'both'; choose one of: plus, minus"),
        ({"weighting": "dro"}, "weighting is 'dro'"),
        ({"limit_eps": -0.1}, "limit_eps is -0.1; give a number 0 or more"),
        ({"robust_step_size": float("nan")}, "robust_step_size is nan"),
        ({"gamma": 1.5}, "gamma is 1.5; give a number from 0 to 1"),
        ({"minimum_variational_weight": 2.0}, "from 0 to 1"),
        ({"alpha": 0.0}, "alpha is 0.0; give the share"),
        (
            {"generalization_adjustment": (1.0, 2.0)},
            "has 2 values for 4 groups; give one value, or one per group",
        ),
        ({"generalization_adjustment": (float("inf"),)}, "give finite numbers"),
        ({"training_counts": (0.0, 0.0)}, "not all 0"),
        ({"training_counts": (3.0, 0.0), "adjust": "in_place"}, "Group 1 has no training images"),
    ],
)
def test_settings_out_of_range_are_one_sentence(change, message):
    with pytest.raises(UserError, match=message):
        GroupRule(**{**asdict(corrected()), **change})


def test_a_unit_without_training_images_gets_no_adjustment_in_the_corrected_rule():
    rule = corrected(training_counts=(4.0, 0.0))
    fixed = constants(rule, torch.float64, torch.device("cpu"))
    assert fixed.shift.tolist() == [1.0, 0.0]
    assert fixed.fractions.tolist() == [1.0, 0.0]
