"""WAT, CFA, DAFA and FAT: corrected rules by hand, properties, and every method in the loop."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import Killed, StopAt, constant, same, training, weights_of

from gdro_at.attacks import TrainingAttack
from gdro_at.baselines import CFA, DAFA, FAT, WAT
from gdro_at.baselines.base import EpochPlace, UniformAttack, global_loss, place_of
from gdro_at.baselines.cfa import (
    Budgets,
    average_weights,
    cfa_loss,
    kept_share,
    official_training_accuracies,
    training_accuracies,
    unit_budgets,
)
from gdro_at.baselines.dafa import class_weights, mean_probabilities
from gdro_at.baselines.fat import (
    Multipliers,
    UnitErrors,
    fat_loss,
    official_shares,
    official_update,
    radius_factors,
    shares,
    unit_errors,
    update,
)
from gdro_at.baselines.wat import expert_weights, validation_costs, wat_loss
from robust_core.data import ImageSet, dataset_info
from robust_core.errors import UserError, UserNote
from robust_core.models import build_model
from robust_core.training import Hooks, LoopSettings, Phase, Processes
from robust_core.training.method import StepContext, micro_batches

EPS = 8 / 255
ATTACK = TrainingAttack(EPS, steps=1)
METHODS = {
    "wat": lambda **more: WAT(attack=ATTACK, **more),
    "wat-class": lambda **more: WAT(attack=ATTACK, over="class", **more),
    "cfa": lambda **more: CFA(attack=ATTACK, threshold=0.0, **more),
    "dafa": lambda **more: DAFA(attack=ATTACK, **more),
    "fat": lambda **more: FAT(attack=ATTACK, **more),
}
FORMS = pytest.mark.parametrize("official", [False, True], ids=["corrected", "official"])
ONE_EPOCH = "ignore:CFA. budgets follow the epoch before"
UNTRAINED = "ignore:DAFA. the official form never takes a step"

numbers = st.lists(st.floats(0, 2), min_size=2, max_size=6)


def grouped(count=48, seed=0, groups=(0, 1, 2, 3)):
    generator = torch.Generator().manual_seed(seed)
    units = torch.tensor(groups)[torch.arange(count) % len(groups)]
    images = torch.randint(0, 200, (count, 3, 16, 16), generator=generator) + 20 * (units // 2).view(
        -1, 1, 1, 1
    )
    info = dataset_info("shapes-grouped")
    return ImageSet(info, "train", images.to(torch.uint8), units // 2, torch.arange(count), groups=units)


def run(path, make, *, steps=5, validation=None, **more):
    more.setdefault("settings", LoopSettings(batch_size=16, log_interval=1, checkpoint_every=1))
    found = training(
        path,
        lambda: [Phase("main", make(), steps, constant(0.02))],
        model=build_model("resnet8-s2", 2, seed=1),
        data=grouped(),
        **more,
    )
    found.validation = grouped(8, seed=1) if validation is None else validation
    return found


def started(path, method, **more):
    """Return a run whose method has begun its first epoch, its first batch and the step's context."""
    found = run(path, lambda: method, **more)
    (batch, *_) = found._batches(0, 0)
    context = found._context(0, 0, (0, len(batch)), len(batch))
    method.begin_epoch(found.data, context)
    found.model.train()
    return found, batch, context


def context(**more):
    place = {"epoch": 0, "step": 0, "phase_step": 0, "phase_steps": 12, "rows": (0, 4), "global_size": 4}
    return StepContext(**{"seed": 1, "view": None, **place, **more})


# -- WAT


def test_wat_weights_by_hand():
    costs = [1.0, 3.0, 2.0]
    powers = [math.exp(0.5 * cost) for cost in costs]
    expected = [2 * power / sum(powers) for power in powers]
    assert expert_weights(torch.tensor(costs), 0.5).tolist() == pytest.approx(expected, rel=1e-6)


def test_wat_unit_without_validation_keeps_weight_1():
    present = torch.tensor([True, False, True])
    found = expert_weights(torch.tensor([1.0, 0.0, 1.0, 1.0]), 0.1, present)
    assert found.tolist() == pytest.approx([2 / 3, 1.0, 2 / 3, 2 / 3])
    everyone = torch.ones(3, dtype=torch.bool)
    costs = torch.tensor([0.3, 0.1, 2.0, 0.7])
    assert torch.equal(expert_weights(costs, 0.1, everyone), expert_weights(costs, 0.1))


@given(numbers, st.permutations(range(6)))
def test_wat_weights_sum_to_the_units_and_follow_a_permutation(costs, order):
    values = torch.tensor([*costs, 0.5], dtype=torch.float64)
    weights = expert_weights(values, 0.7)
    assert float(weights.sum()) == pytest.approx(len(costs))
    chosen = torch.tensor([*(index for index in order if index < len(costs)), len(costs)])
    assert torch.allclose(expert_weights(values[chosen], 0.7), weights[chosen])
    equal = expert_weights(torch.full_like(values, 0.3), 0.7)
    assert torch.allclose(equal, torch.full_like(values, len(costs) / (len(costs) + 1)))


def test_wat_costs_and_loss_by_hand():
    costs, units = torch.tensor([1.0, 2.0, 6.0, 5.0]), torch.tensor([0, 0, 2, 0])
    assert validation_costs(costs, units, 3).tolist() == pytest.approx([8 / 3, 0.0, 6.0, 3.5])
    weights = torch.tensor([1.2, 9.0, 0.5, 0.4])
    found = wat_loss(costs, units, weights, counts=torch.tensor([3.0, 0.0, 1.0]), size=4)
    assert float(found) == pytest.approx((1.2 * 8 / 3 + 0.5 * 6.0) / 3 + 0.4 * 3.5)


def test_wat_with_one_unit_is_the_plain_loss():
    costs = torch.tensor([1.0, 2.0, 6.0])
    weights = expert_weights(torch.tensor([0.8, 0.8]), 0.1)
    found = wat_loss(costs, torch.zeros(3, dtype=torch.int64), weights, counts=torch.tensor([3.0]), size=3)
    assert float(found) == pytest.approx(3.0)


# -- CFA


def test_cfa_budgets_by_hand():
    accuracies = training_accuracies(torch.tensor([3.0, 0.0, 0.0]), torch.tensor([4.0, 5.0, 0.0]))
    eps, robust = unit_budgets(accuracies, eps=0.1, beta=6.0, eps_offset=0.5, beta_offset=0.25)
    assert eps.tolist() == pytest.approx([0.125, 0.05, 0.1])
    assert robust.tolist() == pytest.approx([6 / 7, 1.5 / 2.5, 6 / 7])
    assert official_training_accuracies(
        torch.tensor([3.0, 0.0]), torch.tensor([3.0, 1.0])
    ).tolist() == pytest.approx([1.5, 0.0])


def test_cfa_loss_is_a_mean_of_calibrated_terms():
    natural, adversarial = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(3))
    labels, betas = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([1.0, 6.0, 2.0, 1.0, 6.0])
    p, q = natural.softmax(1), adversarial.softmax(1)
    expected = 0.0
    for row in range(5):
        entropy = -math.log(p[row, labels[row]])
        divergence = sum(float(a) * math.log(a / b) for a, b in zip(p[row], q[row], strict=True))
        expected += (entropy + float(betas[row]) * divergence) / (1 + float(betas[row])) / 5
    found = cfa_loss(natural, adversarial, natural, labels, betas / (1 + betas), size=5)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_cfa_units_of_equal_accuracy_have_equal_budgets(values):
    accuracies = torch.tensor(values)
    eps, robust = unit_budgets(accuracies, eps=EPS, beta=6.0)
    order = accuracies.argsort()
    assert (eps[order].diff() >= 0).all()
    assert (robust[order].diff() >= 0).all()
    assert 0.5 * EPS - 1e-6 <= float(eps.min()) <= float(eps.max()) <= 1.5 * EPS + 1e-6
    before = Budgets(torch.tensor([0.01, 0.02, 0.03]), torch.tensor([0.1, 0.2, 0.3]))
    unseen = unit_budgets(torch.tensor([0.5, math.nan, 0.5]), eps=EPS, beta=6.0, before=before)
    assert unseen.eps.tolist() == pytest.approx([EPS, 0.02, EPS])
    assert unseen.robust_shares.tolist() == pytest.approx([6 / 7, 0.2, 6 / 7])
    same_for_all = unit_budgets(torch.full_like(accuracies, 0.5), eps=EPS, beta=6.0)
    assert same_for_all.eps.tolist() == pytest.approx([EPS] * len(values))


def test_cfa_keeps_the_average_below_the_threshold():
    given = {"threshold": 0.2, "decay": 0.85}
    assert kept_share(0.19, first=True, **given) == 1.0
    assert kept_share(0.2, first=True, **given) == 0.0
    assert kept_share(0.2, first=False, **given) == 0.85


def test_cfa_averages_weights_and_statistics_and_copies_counters():
    average, model = (torch.nn.BatchNorm1d(2) for _ in range(2))
    with torch.no_grad():
        model.weight += 1
        model.running_mean += 4
        model.num_batches_tracked += 7
    before = copy.deepcopy(average.state_dict())
    average_weights(average, model, 1.0)
    assert same(before, average.state_dict())
    average_weights(average, model, 0.75)
    assert average.weight.tolist() == pytest.approx([1.25, 1.25])
    assert average.running_mean.tolist() == pytest.approx([1.0, 1.0])
    assert int(average.num_batches_tracked) == 7


# -- DAFA


def test_dafa_weights_by_hand():
    means = [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.4, 0.2, 0.4]]
    expected = []
    for i in range(3):
        weight = 1.0
        for j in range(3):
            if j != i:
                weight += 1.5 * (1 if means[i][i] < means[j][j] else -1) * means[i][j] * means[j][j]
        expected.append(weight)
    assert class_weights(torch.tensor(means), 1.5).tolist() == pytest.approx(expected)


def test_dafa_class_without_images_has_weight_1_and_moves_no_other():
    sums = torch.tensor([[3.0, 0.5, 0.5], [0.0, 0.0, 0.0], [0.2, 0.2, 0.6]])
    counts = torch.tensor([4.0, 0.0, 1.0])
    means = mean_probabilities(sums, counts)
    assert means[0].tolist() == pytest.approx([0.75, 0.125, 0.125])
    found = class_weights(means, 1.0, counts > 0)
    assert found.tolist() == pytest.approx([1 - 0.125 * 0.6, 1.0, 1 + 0.2 * 0.75])


@given(st.integers(2, 6), st.integers(0, 999))
def test_dafa_weights_follow_a_permutation_and_stay_positive(count, seed):
    generator = torch.Generator().manual_seed(seed)
    means = torch.rand(count, count, generator=generator, dtype=torch.float64)
    means /= means.sum(dim=1, keepdim=True)
    order = torch.randperm(count, generator=generator)
    weights = class_weights(means, 1.5)
    assert torch.allclose(class_weights(means[order][:, order], 1.5), weights[order])
    assert (class_weights(means, 3.9) > 0).all()


def test_dafa_refuses_groups_and_large_lambdas(tmp_path):
    with pytest.raises(UserError, match="take --fair-over class"):
        started(tmp_path / "groups", DAFA(attack=ATTACK, over="group"))
    with pytest.raises(UserError, match=r"lambda is 4\.0, expected 0 to below 4"):
        started(tmp_path / "lam", DAFA(attack=ATTACK, lam=4.0))


# -- FAT


def errors_of(natural, boundary, total_natural, total_boundary):
    return UnitErrors(torch.tensor(natural), torch.tensor(boundary), total_natural, total_boundary)


def test_fat_update_by_hand():
    given = Multipliers(torch.tensor([0.1, 0.02]), torch.tensor([0.3, 0.19]), torch.tensor([0.0, 0.1]))
    rates = {"rho1": 0.1, "rho2": 0.2, "tau0": 0.1, "tau1": 0.05}
    errors = errors_of([0.5, 0.0], [0.6, 0.3], 0.25, 0.45)
    found = update(given, errors, **rates)
    assert found.natural.tolist() == pytest.approx([0.1 + 0.1 * 0.15, 0.0])
    moved = [0.3 + 0.2 * 0.1, 0.19 - 0.2 * 0.2]
    assert sum(moved) < 0.5
    assert found.boundary.tolist() == pytest.approx(moved)
    assert found.margin.tolist() == pytest.approx([0.2 * 0.1, 0.1 - 0.2 * 0.2])
    full = update(given._replace(boundary=torch.tensor([0.6, 0.6])), errors, **rates)
    before = [0.6 + 0.02, 0.6 - 0.04]
    assert full.boundary.tolist() == pytest.approx([0.5 * value / sum(before) for value in before])
    kept = update(given, errors, **rates, present=torch.tensor([True, False]))
    assert kept.margin.tolist() == pytest.approx([0.02, 0.1])
    still = official_update(given, errors, present=torch.tensor([False, True]))
    assert [float(values[0]) for values in still] == pytest.approx([0.1, 0.3, 0.0])


@given(st.lists(st.floats(0, 0.5), min_size=2, max_size=6))
def test_fat_shares_are_positive_and_sum_to_1(values):
    given = torch.tensor(values, dtype=torch.float64)
    bounded = given * min(1.0, 0.5 / max(float(given.sum()), 1e-9))
    found = shares(bounded)
    assert float(found.sum()) == pytest.approx(1.0)
    assert (found > 0).all()
    assert torch.allclose(shares(bounded.flip(0)), found.flip(0))
    equal = torch.full_like(given, 0.4)
    assert shares(equal).tolist() == pytest.approx([1 / len(values)] * len(values))


def test_fat_official_shares_vanish_where_all_multipliers_are_large():
    assert not official_shares(torch.full((4,), 1 / 3)).any()
    unseen = shares(torch.tensor([0.2, 0.0, 0.1]), torch.tensor([True, False, True]))
    assert unseen.tolist() == pytest.approx([1 / 3 + 0.1, 1 / 3, 1 / 3])


def test_fat_radii_are_bounded():
    found = radius_factors(torch.tensor([-1.0, 0.0, 0.2, 3.0]))
    assert found.tolist() == pytest.approx([0.98, 1.0, math.exp(0.4), 3.0])


def test_fat_errors_and_loss_by_hand():
    natural = torch.eye(2)[torch.tensor([0, 1, 1, 0])]
    adversarial = torch.eye(2)[torch.tensor([1, 1, 1, 0])]
    labels, units = torch.tensor([0, 1, 0, 0]), torch.tensor([0, 0, 2, 2])
    found = unit_errors(natural, adversarial, labels, units, 3)
    assert found.natural[[0, 2]].tolist() == pytest.approx([0.0, 0.5])
    assert found.boundary[[0, 2]].tolist() == pytest.approx([0.5, 0.0])
    assert [float(found.total_natural), float(found.total_boundary)] == pytest.approx([0.25, 0.25])
    one = torch.full((4,), 0.5)
    terms = fat_loss(natural, adversarial, natural, labels, one, one, beta=1.0, total=torch.tensor(4.0))
    both = fat_loss(natural, adversarial, natural, labels, one, 0 * one, beta=1.0, total=torch.tensor(2.0))
    entropy = (3 * math.log(1 + math.exp(-1)) + math.log(1 + math.e)) / 4
    assert float(both) == pytest.approx(entropy)
    shift = math.e / (1 + math.e) - 1 / (1 + math.e)
    assert float(terms) == pytest.approx((entropy + shift / 4) / 2)


def test_fat_variants(tmp_path):
    with pytest.raises(UserError, match="reweigh"):
        FAT(attack=ATTACK, variant="reweigh")
    moved = Multipliers(*torch.ones(3, 4))
    assert not FAT(attack=ATTACK, variant="reweight")._of_variant(moved).margin.any()
    remargin = FAT(attack=ATTACK, variant="remargin")._of_variant(moved)
    assert not remargin.natural.any()
    assert not remargin.boundary.any()
    assert remargin.margin.all()


# -- what they share


def test_place_in_the_phase():
    assert place_of(context()) is None
    assert place_of(context(epoch=2, step=6, phase_step=6)) == EpochPlace(2, 4)
    # a phase that began within an epoch: the rest of that counts as one
    assert place_of(context(epoch=2, step=6, phase_step=2)) == EpochPlace(1, 4)
    assert EpochPlace(0, 200).from_share(10 / 200) == 10
    assert EpochPlace(0, 110).from_share(0.64) == 70
    assert EpochPlace(0, 3).from_share(10 / 200) == 1


def test_uniform_start_fills_the_ball():
    images = torch.full((1, 3, 200, 200), 0.5, dtype=torch.float64)
    draw = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    offset = (UniformAttack(EPS).begin(images, draw) - images) / EPS
    assert offset.abs().max() <= 1
    quantiles = torch.quantile(offset.flatten(), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    assert quantiles.tolist() == pytest.approx([-0.8, 0.0, 0.8], abs=0.01)
    assert UniformAttack(EPS).begin(images * 0, draw).min() == 0


# -- in the loop


@pytest.mark.filterwarnings(UNTRAINED)
@FORMS
@pytest.mark.parametrize("name", METHODS)
def test_resumed_equals_uninterrupted(tmp_path, name, official):
    def make():
        return METHODS[name](official=official)

    whole = run(tmp_path / "whole", make)
    whole.fit()
    step = 1 + sum(map(ord, name)) % 4
    with pytest.raises(Killed):
        run(tmp_path / "cut", make, hooks=Hooks(scalar=StopAt(step))).fit()
    resumed = run(tmp_path / "cut", make)
    resumed.fit()
    assert same(weights_of(whole), weights_of(resumed))
    assert same(whole.evaluated_model.state_dict(), resumed.evaluated_model.state_dict())
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "cut/metrics.jsonl").read_bytes()
    kinds = [line["kind"] for line in whole.run.metrics()]
    assert "refresh" in kinds
    assert "unit_counts" not in repr(make())


@pytest.mark.filterwarnings(ONE_EPOCH)
def test_cfa_evaluates_its_average_only_in_the_corrected_form(tmp_path):
    corrected = run(tmp_path / "corrected", METHODS["cfa"])
    corrected.fit()
    method = corrected.phases[0].method
    assert corrected.evaluated_model is method.average
    assert method.first_averaging == 0
    assert not same(weights_of(corrected), corrected.evaluated_model.state_dict())
    told = [line for line in corrected.run.metrics() if "first_averaging_epoch" in line]
    assert [line["first_averaging_epoch"] for line in told] == [0.0]

    published = run(tmp_path / "official", lambda: CFA(attack=ATTACK, official=True))
    published.phases[0].method._hold(copy.deepcopy(published.model))
    assert published.evaluated_model is published.model

    never = run(tmp_path / "never", lambda: CFA(attack=ATTACK, threshold=1.1), steps=3)
    never.fit()
    assert never.evaluated_model is never.model


@pytest.mark.filterwarnings(ONE_EPOCH)
def test_cfa_takes_up_its_average_from_a_state(tmp_path):
    trained = run(tmp_path, METHODS["cfa"], steps=3)
    trained.fit()
    state = trained.phases[0].method.state_dict()
    other = METHODS["cfa"]()
    other.load_state_dict(state)
    assert same(other.state_dict()["average"], state["average"])
    assert other.averaged is None
    other.attach(trained.model)
    assert same(other.averaged.state_dict(), trained.evaluated_model.state_dict())
    assert not other.averaged.training


def test_cfa_budgets_follow_the_last_epoch(tmp_path):
    method = CFA(attack=ATTACK)
    found, _, first = started(tmp_path, method)
    assert method.budgets.eps.tolist() == pytest.approx([EPS] * 4)
    method.counters = torch.tensor([[4.0, 0, 1, 0], [0, 0, 0, 0], [4, 4, 4, 0]], dtype=torch.float64)
    figures = method.refresh(found.data, replace(first, epoch=1, step=3, phase_step=3))
    assert method.budgets.eps.tolist() == pytest.approx([1.5 * EPS, 0.5 * EPS, 0.75 * EPS, EPS])
    assert figures["robust_training_accuracy_2"] == pytest.approx(0.25)
    assert not method.counters.any()
    late = CFA(attack=ATTACK, official=True)
    found, _, first = started(tmp_path / "official", late)
    late.counters = torch.ones(3, 4, dtype=torch.float64)
    for epoch, eps in ((5, EPS), (6, 1.5 * EPS)):
        late.refresh(found.data, replace(first, epoch=epoch, step=3 * epoch, phase_step=3 * epoch))
        assert late.budgets.eps.tolist() == pytest.approx([eps] * 4)
        assert late.counters.all()


@pytest.mark.filterwarnings(UNTRAINED)
def test_dafa_weighs_after_its_warm_up_and_officially_never_trains(tmp_path):
    trained = run(tmp_path / "corrected", METHODS["dafa"])
    trained.fit()
    (line,) = [line for line in trained.run.metrics() if line["kind"] == "refresh"]
    assert line["step"] == 4
    assert [line["weight_0"], line["weight_1"]] != [1.0, 1.0]

    still = run(tmp_path / "official", lambda: DAFA(attack=ATTACK, official=True))
    before = weights_of(still)
    still.fit()
    after = weights_of(still)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("running" in name or "num_batches" in name for name in moved)


def test_dafa_official_says_that_it_does_not_train(tmp_path):
    with pytest.warns(UserWarning, match="official form never takes a step"):
        started(tmp_path, DAFA(attack=ATTACK, official=True))
    scheduled = DAFA(attack=ATTACK, official=True, lower_rate=True)
    scheduled.validated(1.0)
    assert scheduled.rate_factor == 0.0


@pytest.mark.filterwarnings(UNTRAINED)
@pytest.mark.parametrize(
    ("name", "official", "order"),
    [
        ("wat", False, "na"),
        ("wat", True, "na"),
        ("cfa", False, "na"),
        ("cfa", True, "nann"),
        ("dafa", False, "an"),
        ("dafa", True, "an"),
        ("fat", False, "na"),
        ("fat", True, "nan"),
    ],
)
def test_order_of_passes(tmp_path, name, official, order):
    method = METHODS[name](official=official)
    found, batch, first = started(tmp_path, method)
    assert "".join("n" if natural else "a" for natural, _ in passes(found, method, batch, first)) == order


def passes(found, method, batch, first):
    """Return (natural?, images) of each training pass of one step."""
    seen = []
    handle = found.model.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    method.loss(found.model, batch, first)
    handle.remove()
    return [(torch.equal(images, batch.images), images) for images in seen]


def largest(found, method, batch, first):
    """Return the largest perturbation of each image in units of eps."""
    images = next(images for natural, images in passes(found, method, batch, first) if not natural)
    return (images - batch.images).abs().flatten(1).amax(dim=1) / EPS


@FORMS
def test_fat_bounds_the_perturbation_or_the_increment(tmp_path, official):
    method = FAT(attack=TrainingAttack(EPS, steps=12), official=official)
    found, batch, first = started(tmp_path, method)
    method.multipliers = Multipliers(torch.zeros(4), torch.zeros(4), torch.tensor([-0.2, 0.0, 0.2, 0.4]))
    reached = largest(found, method, batch, first)
    allowed = radius_factors(method.multipliers.margin)[batch.groups]
    if official:
        assert reached.max() > 2.4
    else:
        assert (reached <= allowed + 1e-4).all()
        assert reached.max() > 1.5


def test_cfa_and_dafa_bound_each_image_by_its_unit(tmp_path):
    cfa = CFA(attack=TrainingAttack(EPS, steps=8))
    found, batch, first = started(tmp_path / "cfa", cfa)
    cfa.budgets = cfa.budgets._replace(eps=EPS * torch.tensor([0.5, 0.8, 1.2, 1.5]))
    reached = largest(found, cfa, batch, first)
    allowed = torch.tensor([0.5, 0.8, 1.2, 1.5])[batch.groups]
    assert torch.allclose(reached, allowed, atol=1e-3)

    weights = torch.tensor([0.5, 1.5])
    for steps, factor in ((1, 0.25), (12, 1.0)):  # the step, and the radius
        dafa = DAFA(attack=TrainingAttack(EPS, steps=steps, objective="ce", noise=EPS / 320))
        found, batch, first = started(tmp_path / f"dafa-{steps}", dafa)
        dafa.weights = weights
        assert torch.allclose(largest(found, dafa, batch, first), factor * weights[batch.labels], atol=0.02)


def test_official_start_is_published_and_not_clipped():
    for make in METHODS.values():
        start = make(official=True).training_attack
        assert (start.noise, start.clip_start) == (1e-4, False)
        assert make().training_attack == ATTACK


@pytest.mark.parametrize(
    ("name", "told"), [("wat", "WAT: weights"), ("cfa", "CFA: budgets"), ("dafa", "DAFA: weights")]
)
def test_a_single_epoch_that_uses_no_weights_is_told_once(tmp_path, name, told):
    with pytest.warns(UserNote, match=f"{told} follow the epoch before") as notes:
        run(tmp_path / "one", METHODS[name], steps=3).fit()
    assert len(notes) == 1
    run(tmp_path / "two", METHODS[name], steps=4).fit()


def test_fat_validates_in_the_given_pixels(tmp_path):
    seen = []

    class Watched(UniformAttack):
        def climb(self, *arguments):
            seen.append(super().climb(*arguments))
            return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gdro_at.baselines.fat.UniformAttack", Watched)
        started(tmp_path, FAT(attack=ATTACK, validation_clip=(0.3, 0.6)))
    (found,) = seen
    assert 0.3 - 1e-6 <= float(found.min()) <= float(found.max()) <= 0.6 + 1e-6


@pytest.mark.parametrize("name", ["wat", "cfa", "fat"])
def test_validation_is_needed_and_absent_units_are_named_once(tmp_path, name):
    method = METHODS[name]()
    found = run(tmp_path / "none", lambda: method)
    found.validation = None
    with pytest.raises(UserError, match="take --validation N above 0"):
        found.fit()
    names = dataset_info("shapes-grouped").groups
    lacking = grouped(9, seed=1, groups=(0, 1, 3))
    with pytest.warns(UserWarning, match=f"no validation image of {names[2]}, ") as told:
        run(tmp_path / "lacking", METHODS[name], validation=lacking).fit()
    assert len(told) == 1


def test_wat_and_fat_leave_units_without_validation_images_alone(tmp_path):
    lacking = grouped(9, seed=1, groups=(0, 1, 3))
    trained = run(tmp_path / "wat", METHODS["wat"], validation=lacking)
    with pytest.warns(UserWarning, match="keeps weight 1"):
        trained.fit()
    weights = trained.phases[0].method.weights
    assert weights[2] == 1.0
    assert float(weights.sum()) == pytest.approx(4.0)
    trained = run(tmp_path / "fat", METHODS["fat"], validation=lacking)
    with pytest.warns(UserWarning, match="multipliers stay 0"):
        trained.fit()
    natural, robust, radii = trained.phases[0].method.unit_weights()
    assert [float(natural[2]), float(robust[2]), float(radii[2])] == pytest.approx([0.25, 0.25, 1.0])


@pytest.mark.parametrize("name", ["wat", "cfa", "dafa", "fat"])
def test_parts_of_two_processes_add_up_to_the_loss(tmp_path, monkeypatch, name):
    method = METHODS[name]()
    found, batch, first = started(tmp_path, method)
    found.model.eval()  # statistics of the batch would differ
    if name == "wat":
        method.weights = torch.tensor([1.3, 0.2, 0.9, 1.0, 0.6])
    whole = method.loss(found.model, batch, first).loss
    parts = micro_batches(batch, first, 2)
    together = StubReduce(parts, method)
    monkeypatch.setattr("gdro_at.units.dist.all_reduce", together)
    total = 0.0
    for rank, (piece, place) in enumerate(parts):
        together.rank = rank
        local = method.loss(found.model, piece, replace(place, processes=Processes(rank, 2))).loss
        total = total + local * len(piece) / len(batch)
    assert total.item() == pytest.approx(whole.item(), rel=1e-5)


class StubReduce:
    """Adds the member counts of the other process; sums, which no loss uses, stay local."""

    def __init__(self, parts, method):
        self.counts = [
            torch.bincount(method.units_of(piece), minlength=method.units).float() for piece, _ in parts
        ]
        self.rank = 0

    def __call__(self, totals):
        totals[-1] += self.counts[1 - self.rank]


@settings(max_examples=10)
@given(st.integers(1, 4))
def test_pieces_of_a_batch_count_by_their_share(pieces):
    costs, units = torch.arange(8.0), torch.zeros(8, dtype=torch.int64)
    first = context(global_size=8, rows=(0, 8))
    total = 0.0
    for part in costs.chunk(pieces):
        counts = torch.tensor([float(len(part))])
        mean = wat_loss(part, units[: len(part)], torch.tensor([0.5, 0.5]), counts=counts, size=len(part))
        total += global_loss(mean, counts, _Rows(part), first) * len(part) / 8
    assert float(total) == pytest.approx(float(costs.mean()))


class _Rows(list):
    """Only as long as a batch."""
