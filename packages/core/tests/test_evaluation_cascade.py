"""Members one after the other on what still stands, and members that were already run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_evaluation import EPS, PLAIN, image_set, labelled_by, linear

from robust_core.evaluation import Keeper, Member, Protocol, evaluate, load_evaluation
from robust_core.evaluation.work import TAKEN_OVER

FIRST = Member("first", "some", {"eps": EPS, "breaks": [0, 1, 2]})
SECOND = Member("second", "some", {"eps": EPS, "breaks": [2, 3]})
TWO = Protocol("two", (FIRST, SECOND))


def _runner(seen):
    """An attack that breaks the images of the given numbers and notes whom it was given."""

    def run(call):
        seen.append((call.purpose, list(call.indices)))
        chosen = torch.tensor([index in call.settings["breaks"] for index in call.indices])
        return torch.where(chosen.view(-1, 1, 1, 1), _broken(call.images), call.images)

    return run


def _broken(images):
    return (images + EPS).clamp(max=1.0)


class _Named(torch.nn.Module):
    """Right on the natural images of a set, wrong on any that were changed."""

    def __init__(self, data):
        super().__init__()
        self.natural = {
            bytes(image.numpy().tobytes()): int(y) for image, y in zip(data.images, data.labels, strict=True)
        }

    def forward(self, images):
        logits = torch.zeros(len(images), 3) + images.sum() * 0
        for row, image in enumerate((images * 255).round().to(torch.uint8)):
            label = self.natural.get(image.contiguous().numpy().tobytes())
            logits[row, 0 if label is None else label] = 1.0
            if label is None:
                logits[row] = torch.nan
        return logits


@pytest.fixture
def data():
    return image_set(8)


def _evaluate(data, protocol, seen, **options):
    return evaluate(
        _Named(data).eval(), data, protocol, runners={"some": _runner(seen)}, batch_size=3, **options
    )


def test_a_cascade_attacks_what_still_stands_and_finds_the_same_worst_case(data):
    seen, alone = [], []
    cascade = _evaluate(data, TWO, seen, cascade=True)
    plain = _evaluate(data, TWO, alone)
    assert cascade.worst_case().tolist() == plain.worst_case().tolist() == [i > 3 for i in range(8)]
    assert sorted(i for purpose, ids in seen if purpose.endswith("second") for i in ids) == [3, 4, 5, 6, 7]
    assert sorted(i for purpose, ids in alone if purpose.endswith("second") for i in ids) == list(range(8))
    members = cascade.summary()["members"]
    assert (members["first"]["breaks"], members["second"]["breaks"]) == (3, 1)
    assert cascade.summary()["complete"]
    assert not replace(cascade, cascade=False).summary()["complete"]


def test_a_cascade_that_nothing_survives_has_nothing_left_to_attack(data):
    everything = replace(FIRST, settings={"eps": EPS, "breaks": list(range(8))})
    seen = []
    found = _evaluate(data, Protocol("two", (everything, SECOND)), seen, cascade=True)
    assert not found.worst_case().any()
    assert [purpose for purpose, _ in seen] == ["evaluate-first"] * 3
    assert found.summary()["members"]["second"]["images"] == 0


def test_members_that_ran_before_are_taken_over(data, tmp_path):
    kept, seen = [], []
    whole = _evaluate(data, TWO, seen, cascade=True, keep=kept.append)
    assert [len(part.runs) for part in kept] == [1, 2]
    kept[0].save(tmp_path, "part")
    again = []
    continued = _evaluate(data, TWO, again, cascade=True, known=[load_evaluation(tmp_path, "part")])
    assert {purpose for purpose, _ in again} == {"evaluate-second"}
    assert np.array_equal(continued.worst_case(), whole.worst_case())
    assert load_evaluation(tmp_path, "part").cascade


class Killed(BaseException):
    """What a test ends an evaluation with."""


def test_a_stopped_evaluation_goes_on_and_ends_as_if_it_had_not_been_stopped(data, tmp_path):
    whole = _evaluate(data, TWO, [])
    keeper = Keeper(tmp_path, "two")
    assert keeper.known() == []
    with pytest.raises(Killed):
        _evaluate(data, TWO, [], known=keeper.known(), keep=keeper.keep, progress=_stop_at_second)
    assert {path.name for path in tmp_path.iterdir()} == {"two-partial.json", "two-partial.npz"}
    again = []
    found = _evaluate(data, TWO, again, known=keeper.known(), keep=keeper.keep)
    keeper.finish(found)
    assert {purpose for purpose, _ in again} == {"evaluate-second"}
    assert {path.name for path in tmp_path.iterdir()} == {"two.json", "two.npz"}
    ended, summary = whole.summary(), load_evaluation(tmp_path, "two").summary()
    for part in (ended, summary):
        part.pop("seconds")
        for member in part["members"].values():
            member.pop("seconds")
    assert summary == ended


def test_what_goes_on_with_other_batches_says_so(data, tmp_path):
    keeper = Keeper(tmp_path, "two")
    with pytest.raises(Killed):
        _evaluate(data, TWO, [], keep=keeper.keep, progress=_stop_at_second)
    found = evaluate(
        _Named(data).eval(), data, TWO, runners={"some": _runner([])}, batch_size=4, known=keeper.known()
    )
    assert found.runs["first"].flags == (TAKEN_OVER,)
    assert found.runs["second"].flags == ()


def test_what_a_kill_damaged_is_made_again(data, tmp_path):
    keeper = Keeper(tmp_path, "two")
    with pytest.raises(Killed):
        _evaluate(data, TWO, [], keep=keeper.keep, progress=_stop_at_second)
    (tmp_path / "two-partial.npz").write_bytes(b"nonsense")
    again = []
    _evaluate(data, TWO, again, known=keeper.known())
    assert {purpose for purpose, _ in again} == {"evaluate-first", "evaluate-second"}


def _stop_at_second(member, done, total):
    if member == "second":
        raise Killed


@pytest.mark.parametrize("change", ["settings", "seed", "data", "model", "fewer images"])
def test_members_of_something_else_are_run_again(data, change):
    before = _evaluate(data, TWO, [], limit=4 if change == "fewer images" else None)
    protocol, options = TWO, {}
    if change == "settings":
        protocol = Protocol("two", (replace(FIRST, settings={"eps": EPS / 2, "breaks": []}), SECOND))
    if change == "seed":
        options["seed"] = 5
    if change == "data":
        data = replace(data, digest="other")
    if change == "model":
        before = replace(before, natural=~before.natural)
    again = []
    _evaluate(data, protocol, again, known=[before], **options)
    assert "evaluate-first" in {purpose for purpose, _ in again}


def test_passes_through_other_networks_and_other_outputs_are_counted():
    data = labelled_by(linear(), image_set(6))
    other = linear(seed=9)

    def runner(call):
        leaf = call.images.clone().requires_grad_()
        _, (extra,) = call.network.passing(lambda images: (other(images), (other(images),)), leaf)
        torch.autograd.grad(extra.sum() + other(leaf).sum(), leaf)
        logits, _ = call.network.passing(lambda images: (other(images), ()), leaf)
        torch.autograd.grad(logits.sum(), leaf)
        assert call.standing(torch.arange(len(call.images))).all()
        return call.images

    run = evaluate(linear(), data, Protocol("p", (replace(PLAIN, kind="two"),)), runners={"two": runner})
    assert run.runs["plain"].forward == 12
    assert run.runs["plain"].backward == 6
