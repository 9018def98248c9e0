"""A run from a configuration to a report, for a plan that no paper made."""

from __future__ import annotations

import json
import os
import shutil
import sys
import types
from dataclasses import replace

import pytest
import torch
from runs import constant, same, undrawn, write_folders

from robust_core import plan
from robust_core.cli import main
from robust_core.config import RunConfig, config_from_dict
from robust_core.errors import UserError
from robust_core.evaluation import Member, Protocol, load_evaluation, protocol
from robust_core.evaluation.members import RUNNERS, MemberUnavailable
from robust_core.plan import Beginning, core_network
from robust_core.reporting import write_report
from robust_core.session import execute, resume
from robust_core.storage import file_digest, held, write_tensors
from robust_core.training import Phase, RunDirectory
from robust_core.training.methods import Adversarial, AtLoss, InnerAttack, Natural


class Plan(plan.Plan):
    def phases(self, config, epoch_steps):
        attack = InnerAttack(config.epsilon, config.step_size, config.num_steps)
        return [
            Phase("natural", Natural(), 2, constant()),
            Phase("main", Adversarial("AT", attack, AtLoss()), epoch_steps * config.epochs - 2, constant()),
        ]

    def network(self, config, info, *, fresh):
        return core_network(config, info)

    def export(self, config, folder):
        return lambda phase, epoch, model: (folder / f"{phase.name}-{epoch}.txt").write_text("x")

    def conclude(self, session):
        evaluation = session.evaluate(protocol("pgd-20", step_size=session.config.step_size))
        again = session.evaluate(protocol("pgd-20", step_size=session.config.step_size))  # read back
        assert again.natural.tolist() == evaluation.natural.tolist()
        session.save_gallery(evaluation.protocol)
        return {"natural_accuracy": evaluation.summary()["natural_accuracy"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("cifar10"))


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """Draw no report but where a test asks for it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("robust_core.session.write_report", undrawn)
        yield


@pytest.fixture
def config(folders):
    return small(folders)


def small(folders):
    return RunConfig(
        data="cifar10",
        data_dir=str(folders),
        model="resnet8-s2",
        batch_size=16,
        epochs=2,
        num_steps=2,
        validation=10,
        curve_images=10,
        test_images=10,
        log_interval=1,
        threads=1,
        precision="float32",
    )


def final(run):
    return run.checkpoints.latest()["model"]


def test_a_run_leaves_everything_that_a_report_needs(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("robust_core.session.write_report", write_report)
    said = []
    run = execute(config, Plan(), tmp_path / "run", say=said.append)
    names = {path.name for path in run.path.iterdir()}
    assert {"config.json", "metrics.jsonl", "timings.jsonl", "checkpoints", "evaluation"} <= names
    assert {"gallery.npz", "finished.json", "report"} <= names
    record = json.loads((run.path / "config.json").read_text())
    assert record["data"]["train"]["images"] == 50
    assert record["data"]["validation"]["images"] == 10
    assert len(record["data"]["train"]["sha256"]) == 64
    assert record["machine"]["precision"] == "float32"
    assert "seconds" not in (run.path / "metrics.jsonl").read_text()
    assert any("not the official release" in line for line in said)
    assert any(line.startswith("step 1/") for line in said)  # a caller that prefixes lines prefixes these
    assert any(line.startswith("epoch 1 ends") for line in said)
    assert capsys.readouterr().out == ""
    epochs = [line for line in run.metrics() if line["kind"] == "epoch"]
    assert all(0.0 <= line["pgd20_accuracy"] <= line["natural_accuracy"] for line in epochs)
    assert main(["report", str(run.path)]) == 0
    assert "report.html" in capsys.readouterr().out


def test_a_shared_beginning_is_the_same_to_the_bit(config, tmp_path):
    straight = execute(config, Plan(), tmp_path / "straight")
    beginning = execute(config, Beginning(Plan(), 1), tmp_path / "beginning")
    assert beginning.is_finished
    forked = execute(config, Plan(), tmp_path / "forked", fork_from=beginning.path)
    assert same(final(straight), final(forked))
    assert straight.metrics_path.read_bytes() == forked.metrics_path.read_bytes()
    assert [line["step"] for line in straight.timings()] == [line["step"] for line in forked.timings()]


def test_what_cannot_begin_leaves_no_run(config, tmp_path):
    with pytest.raises(UserError, match="Unknown model 'resnet81'; did you mean 'resnet18'"):
        execute(replace(config, model="resnet81"), Plan(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_step_at_all_is_one_sentence(config, tmp_path):
    class Idle(Plan):
        def phases(self, config, epoch_steps):
            return []

    with pytest.raises(UserError, match="leave no step to train"):
        execute(config, Idle(), tmp_path / "run", say=lambda _: None)
    assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_elsewhere_is_left_alone(config, tmp_path):
    run = execute(config, Plan(), tmp_path / "run", say=lambda _: None)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    (run.path / "finished.json").unlink()
    with held(run.path):
        with pytest.raises(UserError, match="Another process is writing"):
            execute(config, Plan(), run.path, overwrite=True, say=lambda _: None)
        with pytest.raises(UserError, match="Another process is writing"):
            resume(config, Plan(), run.path, say=lambda _: None)
    before.pop(run.path / "finished.json")
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_fork_takes_the_best_weights_along(config, tmp_path):
    best = replace(config, selection="best", lr=0.0, curve_images=0)  # lr 0: the first epoch stays the best
    beginning = execute(best, Beginning(Plan(), 1), tmp_path / "beginning")
    assert execute(best, Plan(), tmp_path / "forked", fork_from=beginning.path).is_finished


def test_a_fork_killed_half_way_loses_no_lines(config, tmp_path, monkeypatch):
    straight = execute(config, Plan(), tmp_path / "straight")
    beginning = execute(config, Beginning(Plan(), 1), tmp_path / "beginning")
    monkeypatch.setattr(RunDirectory, "log_timing", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        execute(config, Plan(), tmp_path / "forked", fork_from=beginning.path)
    monkeypatch.undo()
    forked = resume(config, Plan(), tmp_path / "forked")
    assert forked.metrics_path.read_bytes() == straight.metrics_path.read_bytes()


def test_forking_needs_a_checkpoint(config, tmp_path):
    RunDirectory.create(tmp_path / "empty", {"config": {}})
    with pytest.raises(UserError, match="no checkpoint to start from"):
        execute(config, Plan(), tmp_path / "forked", fork_from=tmp_path / "empty")


def test_a_forged_donor_is_refused(config, tmp_path):
    beginning = execute(config, Beginning(Plan(), 1), tmp_path / "beginning")
    replace_newest(beginning.path, lambda state: {**state, "step": "x"})
    with pytest.raises(UserError, match="no checkpoint to start from"):
        execute(config, Plan(), tmp_path / "forked", fork_from=beginning.path)


def test_best_weights_are_the_evaluated_ones(config, tmp_path):
    best = replace(config, selection="best")
    run = execute(best, Plan(), tmp_path / "run")
    assert (run.path / "best.pt").exists()
    assert resume(best, Plan(), run.path).is_finished


@pytest.fixture(scope="module")
def finished(folders, tmp_path_factory):
    """A run that is trained and evaluated, to be copied and damaged."""
    path = tmp_path_factory.mktemp("finished") / "run"
    execute(small(folders), Plan(), path, say=lambda line: None)
    return path


@pytest.fixture
def stopped(finished, tmp_path):
    """The run as if it had been killed before its very end."""
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    (path / "finished.json").unlink()
    return path


def rewrite(path, **changes):
    """Change keys of a JSON file; None removes."""
    record = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def resumed(path):
    """Resume as a script does; returns what was said."""
    said = []
    stored = config_from_dict(RunConfig, RunDirectory.open(path).record["config"])
    assert resume(stored, Plan(), path, say=said.append).is_finished
    return said


def test_an_undamaged_run_resumes(stopped):
    before = (stopped / "metrics.jsonl").read_bytes()
    assert not any("warning" in line for line in resumed(stopped))
    assert (stopped / "metrics.jsonl").read_bytes() == before


RECORDS = {
    "no machine": ({"machine": None}, 'config.json has no settings under "machine"'),
    "odd machine": ({"machine": [1]}, 'config.json has no settings under "machine"'),
    "no data": ({"data": None}, r'config.json has no settings under "data"'),
    "odd data": ({"data": 3}, r'config.json has no settings under "data"'),
    "no config": ({"config": None}, "config.json' is damaged"),
    "odd config": ({"config": 3}, "config.json' is damaged"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_damaged_record_is_one_sentence(stopped, case):
    changes, told = RECORDS[case]
    rewrite(stopped / "config.json", **changes)
    with pytest.raises(UserError, match=told):
        resumed(stopped)


SETTINGS = [
    ("lr", "fast", "has lr 'fast'; expected a number"),
    ("lr", True, "has lr True; expected a number"),
    ("epsilon", None, "has epsilon None; expected a number"),
    ("epochs", 2.0, "has epochs 2.0; expected a whole number"),
    ("epochs", False, "has epochs False; expected a whole number"),
    ("nesterov", 1, "has nesterov 1; expected true or false"),
    ("model", ["resnet18"], r"has model \['resnet18'\]; expected a text"),
    ("data_dir", 3, "has data_dir 3; expected a text or null"),
    ("selection", "bset", "has selection 'bset'; expected last or best"),
    (
        "num_steps",
        -4,
        r"config.json' cannot work \(--num-steps -4 is not possible; expected 0 or more\); restore",
    ),
    ("model", "resnet81", "Unknown model 'resnet81'"),
    ("data", "cifra10", "Unknown dataset 'cifra10'"),
]


@pytest.mark.parametrize(("name", "value", "told"), SETTINGS)
def test_settings_that_cannot_be_are_one_sentence(stopped, name, value, told):
    record = json.loads((stopped / "config.json").read_text())
    rewrite(stopped / "config.json", config={**record["config"], name: value})
    with pytest.raises(UserError, match=told):
        resumed(stopped)


def test_whole_numbers_are_numbers_and_null_is_none():
    config = config_from_dict(RunConfig, {**RunConfig().to_dict(), "lr": 1, "data_dir": None})
    assert (config.lr, config.data_dir) == (1, None)
    with pytest.raises(UserError, match="has no settings"):
        config_from_dict(RunConfig, 3)


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


def deeper(*path, value):
    def change(state):
        inner = state
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        return state

    return change


CHECKPOINTS = {
    "a list": (lambda state: [1], "no checkpoint of a run"),
    "a tensor": (lambda state: torch.zeros(3), "no checkpoint of a run"),
    **{
        f"no {name}": (without(name), f"lacks {name}")
        for name in ("step", "model", "optimizer", "average", "method", "best_score")
    },
    "odd step": (deeper("step", value="x"), "is of step 'x'"),
    "step that is none": (deeper("step", value=True), "is of step True"),
    "no step at all": (deeper("step", value=0), "is of step 0"),
    "step beyond the end": (deeper("step", value=99), r"is of step 99, but this run has \d+ steps"),
    "odd model": (deeper("model", value=3), "holds no state dict"),
    "another network": (deeper("model", value={"w": torch.zeros(2)}), "is of another architecture"),
    "odd weights": (deeper("model", value={"w": "x"}), "holds no state dict"),
    "odd optimizer": (deeper("optimizer", value=3), "does not fit this run"),
    "empty optimizer": (deeper("optimizer", value={}), "does not fit this run"),
    "odd groups": (deeper("optimizer", "param_groups", value=[3]), "does not fit this run"),
    "odd momentum": (deeper("optimizer", "param_groups", 0, "momentum", value="x"), "does not fit this run"),
    "odd buffers": (deeper("optimizer", "state", value={0: {"momentum_buffer": torch.zeros(1)}}), "not fit"),
    "odd score": (deeper("best_score", value="x"), "does not fit this run"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_foreign_checkpoint_is_one_sentence(stopped, case):
    change, told = CHECKPOINTS[case]
    replace_newest(stopped, change)
    before = (stopped / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=told) as refused:
        resumed(stopped)
    assert str(stopped / "checkpoints") in str(refused.value)
    assert (stopped / "metrics.jsonl").read_bytes() == before


def replace_newest(path, change):
    """Put another content into the newest checkpoint, under a right checksum."""
    folder = path / "checkpoints"
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["checkpoints"][-1]
    file = folder / entry["file"]
    write_tensors(file, change(torch.load(file, weights_only=True)))
    entry.update(sha256=file_digest(file), bytes=file.stat().st_size)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_taken(finished, stopped):
    newest = max((stopped / "checkpoints").glob("*.pt"))
    newest.write_bytes(b"nonsense")
    shutil.rmtree(stopped / "evaluation")
    said = resumed(stopped)
    assert any(line.startswith(f"warning: {newest} is damaged (8 bytes") for line in said)
    assert same(final(RunDirectory.open(stopped)), final(RunDirectory.open(finished)))
    assert (stopped / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("suffix", ["json", "npz"])
@pytest.mark.parametrize("content", [None, b"nonsense"])
def test_a_lost_evaluation_is_made_again(finished, stopped, suffix, content):
    path = stopped / f"evaluation/pgd-20.{suffix}"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    said = resumed(stopped)
    told = [line for line in said if line.startswith("warning: ")]
    if suffix == "json" and content is None:  # what a kill leaves before the evaluation is whole
        assert told == []
    else:
        manifest = stopped / "evaluation/pgd-20.json"
        assert told == [f"warning: '{manifest}' or what belongs to it is damaged; its members are run again"]
    again = load_evaluation(stopped / "evaluation", "pgd-20")
    assert again.natural.tolist() == load_evaluation(finished / "evaluation", "pgd-20").natural.tolist()


def test_damaged_best_weights_are_one_sentence(stopped):
    record = json.loads((stopped / "config.json").read_text())
    rewrite(stopped / "config.json", config={**record["config"], "selection": "best"})
    told = (
        r"The best weights of the run cannot be loaded \(.*best\.pt[^;]*\); restore it, or start the run anew"
    )
    with pytest.raises(UserError, match=told):
        resumed(stopped)
    weights = final(RunDirectory.open(stopped))
    write_tensors(stopped / "best.pt", weights)
    stored = weights["linear.weight"].numpy().tobytes()
    content = (stopped / "best.pt").read_bytes()
    (stopped / "best.pt").write_bytes(content.replace(stored, stored[::-1]))
    with pytest.raises(UserError, match=told):
        resumed(stopped)
    write_tensors(stopped / "best.pt", weights)
    resumed(stopped)


def test_a_run_without_its_report_is_not_finished(stopped, monkeypatch):
    def full(path):
        raise UserError("No space left")

    with monkeypatch.context() as patched:
        patched.setattr("robust_core.session.write_report", full)
        with pytest.raises(UserError, match="No space left"):
            resumed(stopped)
    assert not RunDirectory.open(stopped).is_finished
    assert resumed(stopped)[-1] == f"report: {stopped / 'report' / 'report.html'}"


def test_what_a_killed_save_left_is_removed(stopped):
    left = stopped / "checkpoints" / f".step-00000009.pt.{os.getpid()}.tmp"
    left.write_bytes(b"half a checkpoint")
    resumed(stopped)
    assert not left.exists()


def test_checkpoints_without_a_record_are_refused_before_data_is_loaded(config, stopped):
    (stopped / "config.json").unlink()
    with pytest.raises(UserError, match="holds the checkpoints of a run"):
        execute(replace(config, data_dir="nowhere"), Plan(), stopped)


class Killed(BaseException):
    """What a test ends a run with."""


class TwoAttacks(Plan):
    def conclude(self, session):
        fast = {"eps": 8 / 255, "step_size": 2 / 255, "steps": 2}
        session.evaluate(Protocol("both", (Member("first", "pgd", fast), Member("second", "pgd", fast))))
        return {}


def test_a_run_killed_between_two_attacks_of_its_evaluation_goes_on_with_the_second(
    folders, tmp_path, monkeypatch
):
    path = tmp_path / "run"
    monkeypatch.setitem(RUNNERS, "pgd", _killed_at_the_second)
    with pytest.raises(Killed):
        execute(small(folders), TwoAttacks(), path, say=lambda line: None)
    assert [file.name for file in (path / "evaluation").glob("*.json")] == ["both-partial.json"]
    assert "goes on where it stopped" in write_report(path).read_text()
    attacked = []
    monkeypatch.setitem(RUNNERS, "pgd", lambda call: attacked.append(call.purpose) or call.images)
    stored = config_from_dict(RunConfig, RunDirectory.open(path).record["config"])
    assert resume(stored, TwoAttacks(), path, say=lambda line: None).is_finished
    assert set(attacked) == {"evaluate-second"}
    assert [file.name for file in (path / "evaluation").glob("*.json")] == ["both.json"]
    assert load_evaluation(path / "evaluation", "both").runs["first"].flags == ()


def test_an_attack_whose_package_was_missing_is_added_and_the_others_kept(folders, tmp_path, monkeypatch):
    path, attacked = tmp_path / "run", []

    def missing(call):
        raise MemberUnavailable("its package is missing")

    monkeypatch.setitem(RUNNERS, "pgd", lambda call: _killed_at_the_second(call, missing))
    execute(small(folders), TwoAttacks(), path, say=lambda line: None)
    assert not load_evaluation(path / "evaluation", "both").runs["second"].ran
    (path / "finished.json").unlink()
    monkeypatch.setitem(RUNNERS, "pgd", lambda call: attacked.append(call.purpose) or call.images)
    stored = config_from_dict(RunConfig, RunDirectory.open(path).record["config"])
    resume(stored, TwoAttacks(), path, say=lambda line: None)
    assert set(attacked) == {"evaluate-second"}
    assert load_evaluation(path / "evaluation", "both").runs["second"].ran


def test_an_evaluation_of_other_weights_is_made_again(stopped):
    record = load_evaluation(stopped / "evaluation", "pgd-20")
    replace(record, weights="other", natural=~record.natural).save(stopped / "evaluation", "pgd-20")
    resumed(stopped)
    assert (load_evaluation(stopped / "evaluation", "pgd-20").natural == record.natural).all()


def _killed(_):
    raise Killed


def _killed_at_the_second(call, end=_killed):
    return end(call) if call.purpose == "evaluate-second" else call.images


def test_averaged_weights_and_bf16_training_run(config, tmp_path):
    changed = replace(config, ema=0.9, train_precision="bf16", accumulate=2, epochs=1)
    run = execute(changed, Plan(), tmp_path / "run")
    assert torch.isfinite(torch.cat([v.flatten().float() for v in final(run).values()])).all()


def test_normalisation_lies_inside_the_model(config, tmp_path):
    run = execute(replace(config, normalize=True, epochs=1), Plan(), tmp_path / "run")
    assert not any("mean" in name and "running" not in name for name in final(run))


def test_tensorboard_writes_events_or_names_its_extra(config, tmp_path, monkeypatch):
    watched = replace(config, tensorboard=True, epochs=1)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"packages/part\[tensorboard\]"):
        execute(watched, Plan(), tmp_path / "without")
    monkeypatch.undo()
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    run = execute(watched, Plan(), tmp_path / "with")
    assert list((run.path / "tensorboard").glob("events*"))


def test_tensorboard_takes_back_the_steps_beyond_the_checkpoint(config, tmp_path, monkeypatch):
    opened, written = [], []

    class Writer:
        def __init__(self, folder, *, purge_step):
            opened.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append(step)

        def flush(self):
            if written[-1] == 5 and len(opened) == 1:
                raise Killed

    package = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    watched = replace(config, tensorboard=True)
    path = tmp_path / "run"
    with pytest.raises(Killed):
        execute(watched, Plan(), path, say=lambda line: None)
    done = RunDirectory.open(path).checkpoints.latest_step()
    assert done < 5
    resume(watched, Plan(), path, say=lambda line: None)
    folder = str(path / "tensorboard")
    assert opened == [(folder, 1), (folder, done + 1)]
    (path / "finished.json").unlink()
    resume(watched, Plan(), path, say=lambda line: None)  # which logs no figure any more
    assert len(opened) == 2
