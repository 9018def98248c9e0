"""The network of an evaluation script: which file of a directory, what the run says, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ancra.attention import attends
from ancra.checkpoint import WEIGHT_FILES, SubjectConfig, find_weights, load_sources, load_subject
from ancra.networks import build_network
from robust_core.errors import UserError
from robust_core.models import build_model
from robust_core.training.checkpoint import CheckpointStore

pytestmark = pytest.mark.usefixtures("drawn_once")

SAID: list[str] = []
PLACE = {"flag": "--ckpt-url", "say": SAID.append}


def state(seed=0, attention="reverse", model="resnet8-s2"):
    return build_network(model, 10, attention=attention, seed=seed).state_dict()


def settings(**given):
    return SubjectConfig(**given), given


def load(place, **given):
    SAID.clear()
    given = {"data": "shapes", "model": "resnet8-s2", "test_images": 5, **given}
    return load_subject(str(place), *settings(**given), **PLACE)


def write_run(folder, **config):
    stored = {"model": "resnet8-s2", "data": "shapes", "attention": "reverse", "normalize": False, **config}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"config": stored}))
    return folder


def same(network, other):
    mine = network.state_dict()
    return all(torch.equal(value, mine[name]) for name, value in other.items())


def test_a_directory_gives_the_first_of_the_published_names(tmp_path):
    for name in reversed(WEIGHT_FILES):
        (tmp_path / name).write_bytes(b"x")
        file, folder, run = find_weights(str(tmp_path), **PLACE)
        assert (file, folder, run) == (tmp_path / name, tmp_path, {})
        assert str(tmp_path / name) in SAID[-1]


def test_a_run_gives_what_it_selected(tmp_path):
    run = write_run(tmp_path / "run", selection="best")
    for name in ("best_adv_model.pt", "model-wrn-last.pt"):
        torch.save(state(1), run / name)
    assert find_weights(str(run), **PLACE)[0] == run / "best_adv_model.pt"
    torch.save(state(2), run / "best.pt")
    assert find_weights(str(run), **PLACE)[0] == run / "best.pt"
    write_run(run, selection="last")
    assert find_weights(str(run), **PLACE)[0] == run / "best_adv_model.pt"
    CheckpointStore(run / "checkpoints").save({"step": 3, "model": state(3), "average": None}, 3)
    assert same(load_subject(str(run), *settings(test_images=5), **PLACE).network, state(3))
    averaged = {"step": 4, "model": state(3), "average": {"updates": 1, "weights": state(4)}}
    newest = CheckpointStore(run / "checkpoints").save(averaged, 4)
    subject = load_subject(str(run), *settings(test_images=5), **PLACE)
    assert same(subject.network, state(4))
    assert (subject.weights, subject.folder) == (newest, run)
    by_file = load_subject(str(newest), *settings(test_images=5), **PLACE)
    assert (by_file.folder, by_file.settings["data"]) == (run, "shapes")


def test_a_run_of_another_package_gives_what_it_selected_too(tmp_path):
    # GDRO-AT's third word for the best network
    run = write_run(tmp_path / "run", selection="official", attention="none")
    torch.save(state(2, "none"), run / "best.pt")
    CheckpointStore(run / "checkpoints").save({"step": 3, "model": state(3, "none"), "average": None}, 3)
    assert find_weights(str(run), **PLACE)[0] == run / "best.pt"
    assert SAID[-1] == f"weights: {run / 'best.pt'} (--selection official)"


def test_the_runs_settings_decide_and_nothing_needs_to_be_said(tmp_path):
    run = write_run(
        tmp_path / "run",
        model="wrn-16-1",
        normalize=True,
        test_images=7,
        method="mart",
        contrast=True,
        zeta=1.0,
    )
    torch.save(state(5, model="wrn-16-1"), run / "model-120.pt")
    subject = load_subject(str(run), *settings(), **PLACE)
    assert subject.settings == {
        "model": "wrn-16-1",
        "data": "shapes",
        "attention": "reverse",
        "normalize": True,
    }
    assert type(subject.network.normalize).__name__ == "Normalize"
    assert len(subject.images) == 7
    assert subject.name == "ANCRA-MART"
    assert not subject.network.training
    write_run(run, model="wrn-16-1", normalize=True, test_images=-1)  # of another package: all
    assert len(load_subject(str(run), *settings(), **PLACE).images) > 100
    agreeing = settings(data="Shapes", model="wrn-16-1", test_images=3)
    assert len(load_subject(str(run / "model-120.pt"), *agreeing, **PLACE).images) == 3


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model": "resnet18"}, "--model resnet18 contradicts the run in .* has resnet8-s2"),
        ({"data": "cifar100"}, "--dataset cifar100 contradicts the run in .* has shapes"),
        ({"attention": "none"}, "--attention none contradicts the run in .* has reverse"),
        ({"normalize": True}, "--normalize True contradicts the run in .* has False"),
        ({"num_classes": 100}, "--num-classes 100 contradicts shapes, which has 10"),
    ],
)
def test_a_flag_that_contradicts_the_run_is_refused(tmp_path, given, told):
    run = write_run(tmp_path)
    torch.save(state(), run / "model-120.pt")
    with pytest.raises(UserError, match=told):
        load_subject(str(run), *settings(**given), **PLACE)


def test_a_run_without_attention_settings_is_of_a_plain_network(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    stored = {"model": "resnet8-s2", "data": "shapes", "method": "part"}
    (run / "config.json").write_text(json.dumps({"config": stored}))
    torch.save(build_model("resnet8-s2", 10, seed=0).state_dict(), run / "w.pt")
    subject = load_subject(str(run / "w.pt"), *settings(test_images=5), **PLACE)
    assert (subject.settings["attention"], subject.name) == ("none", "PART")


def test_a_folder_that_cannot_take_the_results_is_refused_at_once(tmp_path, monkeypatch):
    torch.save(state(), tmp_path / "w.pt")
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(UserError, match="cannot be written, but the results belong there"):
        load(tmp_path / "w.pt")


@pytest.mark.parametrize("nest", [None, "state_dict", "model", "net"])
def test_bare_and_nested_state_dicts_load_and_flags_describe_them(tmp_path, nest):
    donor = {f"module.{name}": value for name, value in state(6).items()}
    torch.save(donor if nest is None else {nest: donor, "epoch": 3}, tmp_path / "w.pt")
    subject = load(tmp_path / "w.pt", num_classes=10)
    assert same(subject.network, state(6))
    assert (subject.name, subject.folder) == ("ANCRA", tmp_path)


def test_weights_of_the_other_kind_of_network_are_refused(tmp_path):
    torch.save(state(attention="none"), tmp_path / "plain.pt")
    torch.save(state(), tmp_path / "attending.pt")
    with pytest.raises(UserError, match=r"is of a network without reverse attention .* --attention none"):
        load(tmp_path / "plain.pt")
    with pytest.raises(UserError, match="is of a network with reverse attention"):
        load(tmp_path / "attending.pt", attention="none")
    assert load(tmp_path / "plain.pt", attention="none").name == "plain"
    # names and shapes of a WideResNet do not tell; the run does
    write_run(tmp_path / "run", model="wrn-16-1", attention="none")
    torch.save(state(attention="none", model="wrn-16-1"), tmp_path / "run/w.pt")
    with pytest.raises(UserError, match="--attention reverse contradicts the run"):
        load(tmp_path / "run/w.pt", model="wrn-16-1", attention="reverse")


def sources(place, like):
    return load_sources(str(place), like, say=SAID.append)[Path(place).name]


def test_a_bare_source_is_taken_only_where_its_names_tell_its_attention(tmp_path):
    torch.save(state(attention="none"), tmp_path / "plain.pt")
    torch.save(state(), tmp_path / "attending.pt")
    like = load(tmp_path / "attending.pt")
    assert not attends(sources(tmp_path / "plain.pt", like))
    assert attends(sources(tmp_path / "attending.pt", like))
    for model in ("wrn-16-1", "preactresnet18-w4"):
        run = write_run(tmp_path / model, model=model, attention="none")
        for folder, attention in (
            (tmp_path / f"own-{model}", "own"),
            (tmp_path / f"bare-{model}", "reverse"),
        ):
            folder.mkdir()
            torch.save(state(model=model, attention=attention), folder / "w.pt")
        like = load(tmp_path / f"bare-{model}/w.pt", model=model)
        # names and shapes are the same with and without
        told = f"the names in a {model} do not tell whether it has reverse attention; name its run directory"
        with pytest.raises(UserError, match=told):
            sources(tmp_path / f"bare-{model}/w.pt", like)
        assert sources(tmp_path / f"own-{model}/w.pt", like).attention == "own"
        torch.save(state(model=model, attention="none"), run / "model-120.pt")
        assert not attends(sources(run, like))
        assert not attends(sources(run / "model-120.pt", like))


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harm"),))


def test_bad_places_and_files_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Harmful(), "harmful.pt")
    torch.save({**state(), "fc.bias": torch.zeros(3)}, "shapes.pt")
    Path("text.pt").write_text("no checkpoint")
    Path("empty").mkdir()
    Path("damaged").mkdir()
    Path("damaged/config.json").write_text("{")
    write_run(Path("typed"), model=3)
    torch.save(state(), "typed/model-120.pt")
    for place, told in (
        ("none", "names 'none', which is not there"),
        ("empty", "holds no weights; expected one of best.pt, best_adv_model.pt, model-120.pt"),
        ("text.pt", "is not a checkpoint"),
        ("harmful.pt", "is a pickle of Python objects"),
        ("shapes.pt", "'fc.bias' has the shape"),
        ("damaged", "config.json' is damaged"),
    ):
        with pytest.raises(UserError, match=told):
            load(place)
    with pytest.raises(UserError, match="has model 3, expected str"):
        load_subject("typed", *settings(), **PLACE)
    assert not Path("harm").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model": "resnet19"}, "Unknown model"),
        ({"data": "cifar11"}, "did you mean 'cifar10'"),
        ({"test_images": -1}, "--test-images -1 is not possible"),
        ({"threads": 5000}, "--threads 5000 is not possible"),
        ({"seed": -1}, "--seed -1 is not possible"),
    ],
)
def test_settings_that_cannot_work_are_named(given, told):
    with pytest.raises(UserError, match=told):
        SubjectConfig(**given).validate()
