"""What counts as success, what is refused, what is counted, and that nothing leaves a trace."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from robust_core.data.types import DatasetInfo, ImageSet
from robust_core.errors import UserError
from robust_core.evaluation import (
    Member,
    MemberUnavailable,
    Protocol,
    evaluate,
    protocol,
)

EPS = 8 / 255
BRIEF = Protocol(
    "brief", tuple(replace(m, settings={**m.settings, "steps": 4}) for m in protocol("part").members)
)
PLAIN = Member("plain", "plain", {"eps": EPS})


def image_set(count=24, classes=3, groups=None, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    names = tuple(f"class {i}" for i in range(classes))
    info = DatasetInfo("toy", "Toy", names, size, (0.5,) * 3, (0.25,) * 3, groups=groups)
    return ImageSet(
        info=info,
        split="test",
        images=torch.randint(60, 196, (count, 3, size, size), generator=generator, dtype=torch.uint8),
        labels=torch.arange(count) % classes,
        indices=torch.arange(count),
        groups=None if groups is None else torch.arange(count) % len(groups),
    )


def linear(classes=3, size=6, seed=1, scale=1.0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, classes))
    with torch.no_grad():
        model[1].weight.mul_(scale)
        model[1].bias.zero_()
    return model.eval()


def convolutional(classes=3):
    torch.manual_seed(2)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    model = nn.Sequential(*layers, nn.Linear(8, classes))
    with torch.no_grad():
        model[1].running_mean.uniform_(-0.1, 0.1)
        model[5].weight.mul_(4)
    return model.eval()


def labelled_by(model, dataset):
    """The data set with the model's own predictions as labels: natural accuracy is 1."""
    with torch.no_grad():
        return replace(dataset, labels=model(dataset.pixels(slice(None))).argmax(dim=1))


def run_with(runner, model, dataset, members=(PLAIN,), **options):
    runners = runner if isinstance(runner, dict) else {"plain": runner}
    return evaluate(model, dataset, Protocol("own", tuple(members)), runners=runners, **options)


def flipped(model, images):
    """Images in the ball that a linear model gets wrong wherever one exists: away from each class in turn."""
    weight = model[1].weight
    steps = [(weight[k] - weight).sum(dim=0).sign().view(images.shape[1:]) for k in range(len(weight))]
    return [(images + EPS * step).clamp(0, 1) for step in steps]


def test_an_iterate_in_the_middle_counts_although_the_last_one_is_right():
    model = linear(scale=5.0)
    dataset = labelled_by(model, image_set())

    def passing(call):
        for iterate in flipped(model, call.images):
            call.observe(iterate, torch.arange(len(call.images)))
        return call.images.clone()

    found = run_with(passing, model, dataset, batch_size=7)
    expected = np.ones(24, dtype=bool)
    for iterate in flipped(model, dataset.pixels(slice(None))):
        expected &= (model(iterate).argmax(dim=1) == dataset.labels).numpy()
    assert 0 < expected.sum() < 24
    assert found.natural.all()
    assert found.last["plain"].all()
    assert np.array_equal(found.robust["plain"], expected)


def test_rows_name_the_images_of_a_partial_iterate():
    model = linear(scale=5.0)
    dataset = labelled_by(model, image_set())
    broken = flipped(model, dataset.pixels(slice(None)))[0]
    wrong = (model(broken).argmax(dim=1) != dataset.labels).nonzero()[:, 0]
    shown = wrong[1::2]

    def partial(call):
        call.observe(broken[shown], shown)
        return call.images.clone()

    found = run_with(partial, model, dataset, batch_size=24)
    assert np.array_equal(np.flatnonzero(~found.robust["plain"]), shown.numpy())


def test_wrong_at_zero_perturbation_is_not_robust_even_if_the_attack_repairs_it():
    model = linear()
    dataset = image_set()
    found = run_with(lambda call: call.images.clone(), model, dataset)
    right = (model(dataset.pixels(slice(None))).argmax(dim=1) == dataset.labels).numpy()
    assert 0 < right.sum() < 24
    assert np.array_equal(found.natural, right)
    assert np.array_equal(found.last["plain"], right)
    assert not (found.robust["plain"] & ~right).any()


def test_logits_that_are_not_finite_count_as_wrong():
    class Broken(nn.Module):
        def forward(self, images):
            logits = torch.zeros(len(images), 3)
            logits[:, 0] = torch.nan
            return logits

    dataset = replace(image_set(), labels=torch.zeros(24, dtype=torch.int64))
    assert not evaluate(Broken().eval(), dataset, protocol("natural")).natural.any()


def test_worst_case_is_the_union_of_failures_and_names_what_only_one_breaks():
    model = linear(scale=5.0)
    dataset = labelled_by(model, image_set())
    first, second, third = flipped(model, dataset.pixels(slice(None)))
    runners = {
        "a": lambda call: first[list(call.indices)],
        "b": lambda call: second[list(call.indices)],
        "c": lambda call: third[list(call.indices)],
    }
    members = [Member(name, name, {"eps": EPS}) for name in runners]
    found = run_with(runners, model, dataset, members, batch_size=5)
    right = {name: found.robust[name] for name in runners}
    union = right["a"] & right["b"] & right["c"]
    summary = found.summary()
    assert summary["robust_accuracy"] == union.mean()
    only = {name: summary["members"][name]["only_this_breaks"] for name in runners}
    assert only["a"] == (~right["a"] & right["b"] & right["c"]).sum()
    assert only["c"] == (right["a"] & right["b"] & ~right["c"]).sum()
    assert sum(only.values()) > 0


def test_pgd_reaches_the_closed_form_robustness_of_a_linear_network():
    model = linear(classes=2, scale=0.3)
    dataset = labelled_by(model, image_set(count=60, classes=2))
    found = evaluate(model, dataset, protocol("pgd-20"), batch_size=16)
    weight = (model[1].weight[1] - model[1].weight[0]).detach()
    logits = model(dataset.pixels(slice(None)))
    margin = (logits[:, 1] - logits[:, 0]).abs().detach().numpy()
    # No pixel comes within eps of the box, so the budget costs exactly eps times the L1 norm of the weights.
    expected = margin > EPS * float(weight.abs().sum())
    assert 0 < expected.sum() < 60
    assert np.array_equal(found.robust["pgd-20"], expected)


def test_passes_are_counted_per_image():
    found = evaluate(convolutional(), image_set(count=12), protocol("pgd"), batch_size=10)
    short, long = (found.summary()["members"][name] for name in ("pgd-20", "pgd-40"))
    assert short["backward_per_image"] == 20
    assert 20 <= short["forward_per_image"] <= 21
    assert long["backward_per_image"] == 40
    assert short["judging_per_image"] >= 1
    assert short["settings"]["eps"] == EPS


def test_minimum_margin_member_attacks_three_targets():
    member = protocol("part").members[1]
    found = evaluate(convolutional(classes=5), image_set(classes=5), Protocol("mma", (member,)))
    row = found.summary()["members"]["mma"]
    assert row["backward_per_image"] == 60
    assert row["robust_accuracy"] <= row["last_accuracy"]


def test_result_depends_on_neither_batch_size_nor_the_other_images():
    model, dataset = convolutional(), image_set(count=40)
    whole = evaluate(model, dataset, BRIEF, batch_size=40)
    cut = evaluate(model, dataset, BRIEF, batch_size=7)
    assert 0 < whole.worst_case().sum() < 40
    positions = torch.tensor([31, 4, 17])
    some = evaluate(model, dataset.subset(positions), BRIEF, batch_size=2)
    for member in whole.robust:
        assert np.array_equal(whole.robust[member], cut.robust[member])
        assert np.array_equal(whole.last[member], cut.last[member])
        assert np.array_equal(whole.robust[member][positions.numpy()], some.robust[member])


def test_starts_depend_on_seed_member_and_image_only():
    seen = {}

    def record(call):
        key = (call.seed, call.purpose, tuple(call.indices))
        seen[key] = call.starts()
        return call.images.clone()

    members = [Member("one", "plain", {"eps": EPS}), Member("two", "plain", {"eps": EPS})]
    model, dataset = linear(), image_set(count=4)
    for seed in (0, 1):
        run_with(record, model, dataset, members, seed=seed)
    run_with(record, model, dataset.subset(torch.tensor([2])), members)
    whole = seen[0, "evaluate-one", (0, 1, 2, 3)]
    assert torch.equal(whole[2], seen[0, "evaluate-one", (2,)][0])
    assert not torch.equal(whole, seen[1, "evaluate-one", (0, 1, 2, 3)])
    assert not torch.equal(whole, seen[0, "evaluate-two", (0, 1, 2, 3)])
    # Up to the rounding of a pixel.
    assert (whole - dataset.pixels(slice(None))).abs().max() <= EPS + 1e-6


def test_equal_calls_give_equal_records():
    first, second = (evaluate(convolutional(), image_set(), BRIEF, seed=3) for _ in range(2))
    assert all(np.array_equal(first.robust[name], second.robust[name]) for name in first.robust)


def test_limit_takes_the_first_images():
    found = evaluate(linear(), image_set(), protocol("natural"), limit=5)
    assert found.indices.tolist() == [0, 1, 2, 3, 4]
    assert len(evaluate(linear(), image_set(), protocol("natural"), limit=500).labels) == 24


def test_a_member_may_attack_fewer_images():
    model = linear(scale=5.0)
    dataset = labelled_by(model, image_set())
    part = replace(PLAIN, images=10)
    found = run_with(lambda call: flipped(model, call.images)[0], model, dataset, [part], batch_size=8)
    right = (model(flipped(model, dataset.pixels(slice(None)))[0]).argmax(dim=1) == dataset.labels).numpy()
    summary = found.summary()
    assert summary["members"]["plain"]["images"] == 10
    assert summary["members"]["plain"]["robust_accuracy"] == right[:10].mean()
    assert summary["robust_accuracy"] == (right[:10].sum() + 14) / 24
    assert not summary["complete"]


def test_a_missing_package_is_a_row_with_the_remedy_or_an_error_if_required():
    def missing(call):
        raise MemberUnavailable("the package is missing: pip install it.")

    found = run_with(missing, linear(), image_set())
    row = found.summary()["members"]["plain"]
    assert row["status"] == "not run"
    assert "pip install" in row["remedy"]
    assert found.summary()["robust_accuracy"] is None
    assert not found.summary()["complete"]
    with pytest.raises(UserError, match=r"'plain' was asked for.*pip install"):
        run_with(missing, linear(), image_set(), [replace(PLAIN, required=True)])


def test_float64_networks_are_evaluated_in_float64():
    found = evaluate(convolutional().double(), image_set(), protocol("pgd-20"))
    assert found.precision == "float64"


def test_autocast_of_the_caller_is_kept_out():
    seen = set()

    class Watching(nn.Module):
        def forward(self, images):
            logits = images.flatten(1)[:, :12] @ torch.ones(12, 3)
            seen.add(logits.dtype)
            return logits

    with torch.autocast("cpu", torch.bfloat16):
        evaluate(Watching().eval(), image_set(), protocol("natural"))
    assert seen == {torch.float32}


def test_progress_tells_member_and_images():
    told = []
    evaluate(
        linear(), image_set(), protocol("pgd-20"), batch_size=20, progress=lambda *entry: told.append(entry)
    )
    assert told == [("natural", 20, 24), ("natural", 24, 24), ("pgd-20", 20, 24), ("pgd-20", 24, 24)]


def test_an_attack_outside_of_its_ball_is_a_fault():
    for far in (lambda call: call.images + 2 * EPS, lambda call: call.images * torch.nan):
        with pytest.raises(RuntimeError, match="left its ball"):
            run_with(far, linear(), image_set())


def _in_train_mode():
    model = convolutional()
    model[1].train()
    return model


@pytest.mark.parametrize(
    ("model", "dataset", "options", "message"),
    [
        (_in_train_mode(), image_set(), {}, r"train mode \(module '1'\).*model\.eval"),
        (linear(classes=4), image_set(), {}, r"\(24, 4\).*'toy' has 3 classes.*num_classes=3"),
        (linear(), image_set(count=0), {}, "has no images"),
        (linear(), image_set(), {"limit": 0}, "limit is 0"),
        (linear(), image_set(), {"batch_size": 0}, "batch_size is 0"),
        (linear().bfloat16(), image_set(), {}, "bfloat16.*model.float"),
        (linear(), replace(image_set(), labels=torch.full((24,), 3)), {}, "3..3, expected 0..2"),
    ],
)
def test_refuses_by_name_and_value(model, dataset, options, message):
    with pytest.raises(UserError, match=message):
        evaluate(model, dataset, protocol("pgd-20"), **options)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (Member("odd", "unheard", {"eps": EPS}), "unknown kind 'unheard'"),
        (replace(PLAIN, images=0), "images=0"),
    ],
)
def test_refuses_members(member, message):
    with pytest.raises(UserError, match=message):
        run_with(lambda call: call.images, linear(), image_set(), [member])


def test_protocols_by_name():
    assert [m.name for m in protocol("pgd").members] == ["pgd-20", "pgd-40"]
    assert [m.name for m in protocol("part", autoattack_images=None).members] == [
        "pgd-20",
        "mma",
        "autoattack",
    ]
    assert protocol("autoattack", required=True).members[0].required
    assert Protocol.from_json(protocol("part").as_json()) == protocol("part")
    with pytest.raises(UserError, match="did you mean 'pgd-20'"):
        protocol("pgd20")
    with pytest.raises(UserError, match="may occur once"):
        Protocol("twice", (PLAIN, PLAIN))
