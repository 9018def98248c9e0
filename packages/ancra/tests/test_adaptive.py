"""Attacks that know reverse attention: what each climbs, the suite, and a defence that falls to them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import undrawn

from ancra.adaptive import (
    QUICK,
    adaptive_protocol,
    adaptive_runners,
    all_towards,
    blocks_of,
    largest_margin,
    of_output,
    straight_through,
)
from ancra.examine import EXAMINATIONS, examine_network
from ancra.networks import build_network
from ancra.white_attack import main
from robust_core.data import load_dataset
from robust_core.evaluation import Protocol, Sizes, evaluate, load_examination
from robust_core.models import FrozenView

pytestmark = pytest.mark.usefixtures("drawn_once")
EPS = 8 / 255
TINY = replace(QUICK, steps=3, queries=4, hard_label_queries=8, hard_label_images=2)


@pytest.fixture(scope="module")
def images():
    return load_dataset("shapes", split="test").subset(torch.arange(10))


@pytest.fixture(scope="module")
def network():
    model = build_network("resnet10-s2", 10, seed=1)
    with torch.no_grad():
        model.fc.weight.mul_(6)
    return model.eval()


def _labelled(network, images):
    with torch.no_grad():
        return replace(images, labels=network(images.pixels(slice(None))).argmax(dim=1))


def test_the_choice_is_hard_forwards_and_soft_backwards(network, images):
    pixels = images.pixels(slice(None))
    view = FrozenView(network)
    plain = view.call(pixels, auxiliary=True)
    for temperature in (0.1, 1.0, 10.0):
        soft = view.call(pixels, auxiliary=True, choice=straight_through(temperature))
        assert torch.equal(soft.logits, plain.logits)
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, dtype=torch.float64)
    (found,) = torch.autograd.grad((straight_through(0.5)(logits) @ weight).sum(), logits)
    scale = 0.5 * logits.detach().std(dim=1, keepdim=True)
    again = logits.detach().requires_grad_()
    (wanted,) = torch.autograd.grad((torch.softmax(again / scale, dim=1) @ weight).sum(), again)
    assert torch.allclose(found, wanted)
    assert wanted.abs().min() > 0


def test_objectives_climb_what_their_names_say():
    logits = torch.randn(6, 3, 5, dtype=torch.float64)
    labels = torch.arange(6) % 5
    wrong = logits.scatter(2, labels[:, None, None].expand(-1, 3, 1), -torch.inf)
    own = logits.gather(2, labels[:, None, None].expand(-1, 3, 1))[:, :, 0]
    margins = wrong.amax(dim=2) - own
    assert torch.allclose(of_output("final", "margin")(logits, labels), margins[:, 0])
    assert torch.allclose(of_output("block 2", "margin")(logits, labels), margins[:, 2])
    total = logits.sum(dim=1)
    assert torch.allclose(
        of_output("sum", "ce")(logits, labels),
        torch.nn.functional.cross_entropy(total, labels, reduction="none"),
    )
    assert torch.allclose(all_towards(3)(logits, labels), (logits[:, :, 3] - own).sum(dim=1))
    assert torch.allclose(largest_margin(logits, labels), margins.amax(dim=1))


def test_the_suite_has_every_member_of_the_design(network):
    names = [
        m.name
        for m in adaptive_protocol(
            2, 10, sources=dict.fromkeys(("AT", "TRADES", "another seed"), network)
        ).members
    ]
    outputs = [
        f"b {loss}, {out}"
        for out in ("block 1", "block 2", "final", "sum")
        for loss in ("ce", "dlr", "margin")
    ]
    soft = [f"d soft {t}, {loss}" for t in ("0.1", "1", "10") for loss in ("ce", "margin")]
    transfer = ["g transfer, AT", "g transfer, TRADES", "g transfer, another seed"]  # in alphabetical order
    last = ["h square", "h square, blocks", "h rays"]
    assert names == [
        "autoattack",
        *outputs,
        "c same class",
        *soft,
        "e fixed choice",
        "f features",
        *transfer,
        *last,
    ]
    by_name = {m.name: m for m in adaptive_protocol(2, 10).members}
    assert by_name["b ce, sum"].settings == {
        "eps": EPS, "steps": 100, "output": "sum", "loss": "ce", "restarts": 5,
    }  # fmt: skip
    assert by_name["c same class"].settings["targets"] == 9
    assert by_name["h square"].settings["queries"] == 5000
    assert by_name["h rays"].images == 100
    plain = [m.name for m in adaptive_protocol(0, 10).members]
    assert plain[:4] == ["autoattack", "b ce, final", "b dlr, final", "b margin, final"]
    assert not any(name[0] in "de" for name in plain)
    assert not any("dlr" in m.name for m in adaptive_protocol(2, 2).members)


@pytest.mark.parametrize("kind", ["reverse", "none"])
def test_every_member_runs_on_networks_with_and_without_attention(kind, images):
    model = build_network("resnet10-s2", 10, attention=kind, seed=1).eval()
    data = _labelled(model, images)
    other = build_network("resnet10-s2", 10, seed=2).eval()
    protocol = adaptive_protocol(
        blocks_of(model), 10, effort=replace(TINY, targets=2), sources={"other": other}, autoattack=False
    )
    runners = adaptive_runners(images, {"other": other})
    found = evaluate(model, data, protocol, runners=runners)
    assert all(run.ran for run in found.runs.values())
    assert all(run.forward > 0 for run in found.runs.values())
    assert all((run.backward > 0) == (name[0] != "h") for name, run in found.runs.items())


def test_fixed_choices_hold_the_weights_of_one_class(network, images):
    """The member that fixes the choice attacks what the network says when it is told that class."""
    data = _labelled(network, images)
    protocol = adaptive_protocol(2, 10, eps=1e-4, effort=replace(TINY, targets=0))
    member = next(m for m in protocol.members if m.kind == "fixed-choice")
    asked = []
    call_of = FrozenView.call

    def call(self, pixels, **arguments):
        found = call_of(self, pixels, **arguments)
        for number in range(10):
            labels = torch.full((len(pixels),), number)
            if torch.allclose(found.logits, call_of(self, pixels, attention_labels=labels), atol=1e-5):
                asked.append(number)
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FrozenView, "call", call)
        evaluate(network, data, Protocol("p", (replace(member, settings={**member.settings, "steps": 1}),)),
                 runners=adaptive_runners())  # fmt: skip
    assert set(asked) == set(range(10))


def test_targets_bound_the_classes_of_each_image(network, images):
    data = _labelled(network, images)
    protocol = adaptive_protocol(2, 10, eps=1e-4, effort=replace(TINY, targets=2))
    member = next(m for m in protocol.members if m.kind == "same-class")
    few = evaluate(network, data, Protocol("p", (member,)), runners=adaptive_runners()).runs[member.name]
    every = replace(member, settings={**member.settings, "targets": 9})
    many = evaluate(network, data, Protocol("p", (every,)), runners=adaptive_runners()).runs[member.name]
    assert 2 * few.backward < many.backward


def test_the_worst_case_is_at_most_each_member(network, images, tmp_path):
    data = _labelled(network, images)
    effort = EXAMINATIONS["smoke"]
    found, checks = examine_network(network, data, tmp_path, effort=effort, training_images=data, say=_silent)
    worst = found.cascade.worst_case()
    assert all(
        (worst <= (kept | ~found.cascade.attacked[name])).all() for name, kept in found.cascade.robust.items()
    )
    kinds = {member.kind for member in found.float64.protocol.members}
    assert "outputs" in kinds
    assert not kinds & {"square", "square-outputs", "rays"}
    assert [check.name for check in checks][-1] == "adaptive against standard"
    files = {path.name for path in (tmp_path / "adaptive").iterdir()}
    assert {
        "adaptive.md",
        "adaptive.png",
        "adaptive.pdf",
        "sanity.json",
        "examination.json",
        "cascade-2.json",
        "float64-2.npz",
    } <= files


def _silent(text):
    del text


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("ancra.white_attack.write_report", undrawn)
    short = replace(
        EXAMINATIONS["smoke"], sizes=Sizes(cascade=12, alone=0, long=0, precise=0), sanity_images=0
    )
    monkeypatch.setattr("ancra.white_attack.EXAMINATIONS", {"smoke": short})
    return Path(shutil.copytree(trained / "ancra", tmp_path / "run"))


def _words(run, *more):
    words = [
        "--ckpt_url",
        run,
        "--attacks",
        "natural",
        "--adaptive",
        "--effort",
        "smoke",
        "--test-images",
        "12",
    ]
    return [*words, *more]


def test_the_script_examines_a_run_from_another(trained, run, in_process):
    words = _words(run, "--transfer-from", trained / "trades")
    done = in_process(main, words)
    assert done.code == 0, done.err
    for part in ("Adaptive suite", "g transfer, trades", "Sanity table", "worst case", "b ce, block 1: "):
        assert part in done.out
    assert len(load_examination(run / "adaptive").cascade.labels) == 12
    assert json.loads((run / "adaptive/cascade-2.json").read_text())["weights"]


def test_an_examination_is_not_made_twice(run, in_process):
    assert in_process(main, _words(run)).code == 0
    again = in_process(main, _words(run, "--adaptive-images", "8"))
    assert again.code == 0, again.err
    assert "b ce, block 1: 8 of" not in again.out
    assert "taken over" in again.out
    assert len(load_examination(run / "adaptive").cascade.labels) == 8


def test_a_source_of_other_data_is_refused_before_anything_is_attacked(trained, run, in_process, tmp_path):
    other = Path(shutil.copytree(trained / "trades", tmp_path / "other"))
    record = json.loads((other / "config.json").read_text())
    record["config"]["data"] = "cifar100"
    (other / "config.json").write_text(json.dumps(record))
    done = in_process(main, _words(run, "--transfer-from", other))
    assert done.code == 2
    assert "was trained on cifar100, this network on shapes" in done.err
    assert not (run / "evaluation/white-attack.json").exists()


def test_sources_of_one_name_stay_apart_and_need_no_run(trained, run, in_process, tmp_path):
    places = [Path(shutil.copytree(trained / "trades", tmp_path / name / "same")) for name in "ab"]
    bare = shutil.copy(trained / "trades/model-wrn-last.pt", tmp_path / "plain.pt")
    done = in_process(main, _words(run, "--transfer-from", ",".join(map(str, (*places, bare)))))
    assert done.code == 0, done.err
    members = [
        m.name for m in load_examination(run / "adaptive").cascade.protocol.members if m.kind == "transfer"
    ]
    assert len(members) == 3


def test_flags_of_the_adaptive_suite_without_it_are_told(run, in_process):
    words = ["--ckpt_url", run, "--attacks", "natural", "--test-images", "4", "--effort", "demo"]
    assert "warning: --effort has no effect here" in in_process(main, words).out


def test_a_place_to_transfer_from_that_is_not_there_is_one_sentence(run, in_process):
    done = in_process(main, _words(run, "--transfer-from", run / "nowhere"))
    assert done.code == 2
    assert "--transfer-from names" in done.err
