"""Each kind of member: passes, starts, determinism, AutoAttack, and no trace on the model."""

from __future__ import annotations

import numpy as np
import purity
import pytest
import torch
from small_nets import ConvNet
from toy_evaluation import BRIEF, EPS, MMA, PLAIN, convolutional, image_set, labelled_by, linear, run_with

from robust_core import attacks
from robust_core.errors import UserError
from robust_core.evaluation import Member, Protocol, evaluate, protocol


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
    found = evaluate(convolutional(classes=5), image_set(classes=5), Protocol("mma", (MMA,)))
    row = found.summary()["members"]["mma"]
    assert row["backward_per_image"] == 60
    assert row["robust_accuracy"] <= row["last_accuracy"]


@pytest.mark.parametrize(
    ("kind", "settings", "backward"),
    [
        ("fgsm", {}, 1),
        ("apgd", {"steps": 6, "early_stop": False}, 7),
        ("pgd", {"steps": 3, "step_size": EPS, "restarts": 2, "random_start": "normal"}, 6),
        ("pgd", {"steps": 3, "step_size": EPS, "random_start": False}, 3),
        ("pgd", {"steps": 3, "step_size": 0.2, "eps": 0.5, "norm": "l2"}, 3),
    ],
)
def test_every_kind_of_member_attacks(kind, settings, backward):
    member = Member("one", kind, {"eps": EPS, **settings})
    found = evaluate(convolutional(), image_set(), Protocol("own", (member,)), batch_size=11)
    row = found.summary()["members"]["one"]
    assert row["backward_per_image"] == backward
    assert row["robust_accuracy"] <= found.summary()["natural_accuracy"]


def test_autoattack_breaks_what_a_weak_attack_leaves_and_keeps_its_flags():
    pytest.importorskip("pyautoattack")
    model = linear()
    dataset = labelled_by(model, image_set(count=12))
    # A budget at which every image falls to its first member: Square alone would take thousands of queries.
    strong = Member("autoattack", "autoattack", {"eps": 0.2})
    weak = Member("weak", "pgd", {"eps": 0.2, "step_size": 1e-4, "steps": 2, "random_start": False})
    summary = evaluate(model, dataset, Protocol("own", (strong, weak)), batch_size=12).summary()
    row = summary["members"]["autoattack"]
    assert row["robust_accuracy"] == summary["robust_accuracy"] == 0
    assert row["only_this_breaks"] >= 6
    assert any("skipped: apgd-t needs 4 classes" in flag for flag in row["flags"])
    assert row["forward_per_image"] > 1


def test_without_its_package_autoattack_is_a_row_with_the_remedy(monkeypatch):
    monkeypatch.setattr(attacks, "autoattack_available", lambda: False)
    found = evaluate(linear(), image_set(), protocol("autoattack"))
    assert "pyautoattack" in found.runs["autoattack"].remedy
    with pytest.raises(UserError, match=r"'autoattack' was asked for.*pyautoattack"):
        evaluate(linear(), image_set(), protocol("autoattack", required=True))


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


@pytest.mark.parametrize("members", [BRIEF.members, (Member("apgd", "apgd", {"eps": EPS, "steps": 3}),)])
def test_evaluation_leaves_no_trace(members):
    model = ConvNet(classes=3).eval()
    model(image_set().pixels(slice(0, 2))).sum().backward()
    with purity.unchanged(model):
        evaluate(model, image_set(size=8), Protocol("own", members), batch_size=9)


def test_evaluation_leaves_no_trace_when_it_fails():
    def failing(call):
        call.network(call.images.requires_grad_()).sum().backward()
        raise ArithmeticError

    model = ConvNet(classes=3).eval()
    with purity.unchanged(model), pytest.raises(ArithmeticError):
        run_with(failing, model, image_set())


def test_autoattack_leaves_no_trace():
    pytest.importorskip("pyautoattack")
    model, dataset = linear(), image_set(count=6)
    with purity.unchanged(model):
        evaluate(model, dataset, protocol("autoattack", eps=0.2))


def test_protocols_by_name():
    assert [m.name for m in protocol("pgd").members] == ["pgd-20", "pgd-40"]
    assert [m.name for m in protocol("pgd", autoattack_images=None).members][2:] == ["autoattack"]
    assert protocol("autoattack", required=True).members[0].required
    assert Protocol.from_json(protocol("pgd").as_json()) == protocol("pgd")
    with pytest.raises(UserError, match="did you mean 'pgd-20'"):
        protocol("pgd20")
    with pytest.raises(UserError, match="may occur once"):
        Protocol("twice", (PLAIN, PLAIN))
