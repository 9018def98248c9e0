"""What counts as success, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from toy_evaluation import EPS, PLAIN, convolutional, flipped, image_set, labelled_by, linear, run_with

from robust_core.errors import UserError
from robust_core.evaluation import Member, MemberUnavailable, evaluate, protocol


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


class Broken(nn.Module):
    """Its logits are NaN for the images with a white pixel."""

    def forward(self, images):
        logits = torch.zeros(len(images), 3)
        logits[:, 0] = torch.where(images.flatten(1).amax(1) == 1, torch.nan, 1.0)
        return logits


def test_logits_of_an_iterate_that_are_not_finite_count_as_wrong():
    dataset = replace(image_set(), labels=torch.zeros(24, dtype=torch.int64))
    dataset.images[:12, 0, 0, 0] = 250

    def brighter(call):
        return (call.images + EPS).clamp(0, 1)

    found = run_with(brighter, Broken().eval(), dataset, batch_size=7)
    assert found.natural.all()
    assert found.robust["plain"].tolist() == [False] * 12 + [True] * 12


def test_natural_logits_that_are_not_finite_are_refused():
    dataset = image_set().subset(torch.arange(4, 24))
    dataset.images[3:5] = 255
    with pytest.raises(
        UserError, match=r"not finite.* 2 of 20 natural images, first for image 7: load sound"
    ):
        evaluate(Broken().eval(), dataset, protocol("pgd-20"), batch_size=6)


def test_a_protocol_may_be_given_by_its_name():
    by_name = evaluate(linear(), image_set(), "pgd-20")
    assert by_name.protocol == protocol("pgd-20")
    assert np.array_equal(
        by_name.robust["pgd-20"], evaluate(linear(), image_set(), protocol("pgd-20")).robust["pgd-20"]
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("pgd20", "Unknown protocol 'pgd20'; did you mean 'pgd-20'"),
        (20, "protocol is 20, expected a Protocol or"),
    ],
)
def test_what_is_no_protocol_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        evaluate(linear(), image_set(), given)


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
        (lambda images: (images, 0), image_set(), {}, r"model returned a tuple, expected logits \(n, 3\)"),
        (linear(), image_set(), {"limit": "5"}, "limit is '5', expected a whole number"),
        (linear(), image_set(), {"batch_size": 2.0}, "batch_size is 2.0, expected a whole number"),
        (linear(), image_set(count=0), {}, "has no images"),
        (linear(), image_set(), {"limit": 0}, "limit is 0"),
        (linear(), image_set(), {"batch_size": 0}, "batch_size is 0"),
        (linear(), image_set(), {"device": "meta"}, r"lies on 'cpu'.*model\.to"),
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
        (
            Member("own", "plain", {"epsilon": EPS}),
            r"Member 'own' \(plain\) has no setting 'eps', only \['epsilon'\]",
        ),
        (Member("own", "plain", {"eps": "8/255"}), "Member 'own' has eps='8/255', expected a number"),
        (
            Member("p", "pgd", {"epsilon": EPS}),
            r"Unknown setting of member 'p' \(pgd\) 'epsilon'.*Known: .*eps",
        ),
        (Member("p", "pgd", {"eps": EPS, "step": 1}), r"member 'p' \(pgd\) 'step'; did you mean 'steps'"),
        (Member("p", "pgd", {"eps": EPS, "steps": 2}), r"Member 'p' \(pgd\) has no setting 'step_size'"),
        (Member("a", "autoattack", {"eps": EPS, "generator": 1}), r"member 'a' \(autoattack\) 'generator'"),
    ],
)
def test_refuses_members(member, message):
    with pytest.raises(UserError, match=message):
        run_with(lambda call: call.images, linear(), image_set(), [member])
