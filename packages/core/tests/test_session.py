"""A run from a configuration to a report, for a plan that no paper made."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from runs import constant, same, write_folders

from robust_core.cli import main
from robust_core.config import RunConfig
from robust_core.errors import UserError
from robust_core.evaluation import protocol
from robust_core.session import Beginning, execute, resume
from robust_core.training import Phase
from robust_core.training.methods import Adversarial, AtLoss, InnerAttack, Natural


class Plan:
    def phases(self, config, epoch_steps):
        attack = InnerAttack(config.epsilon, config.step_size, config.num_steps)
        return [
            Phase("natural", Natural(), 2, constant()),
            Phase("main", Adversarial("AT", attack, AtLoss()), epoch_steps * config.epochs - 2, constant()),
        ]

    def export(self, config, folder):
        return lambda phase, epoch, model: (folder / f"{phase.name}-{epoch}.txt").write_text("x")

    def conclude(self, session):
        evaluation = session.evaluate(protocol("pgd-20", step_size=session.config.step_size))
        again = session.evaluate(protocol("pgd-20"))  # read back, not run again
        assert again.natural.tolist() == evaluation.natural.tolist()
        session.save_gallery(evaluation.protocol)
        return {"natural_accuracy": evaluation.summary()["natural_accuracy"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("cifar10"))


@pytest.fixture
def config(folders):
    return RunConfig(
        data="cifar10",
        data_dir=str(folders),
        model="resnet18-w4",
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


def test_a_run_leaves_everything_that_a_report_needs(config, tmp_path, capsys):
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


def test_forking_needs_a_checkpoint(config, tmp_path):
    from robust_core.training import RunDirectory

    RunDirectory.create(tmp_path / "empty", {"config": {}})
    with pytest.raises(UserError, match="no checkpoint to start from"):
        execute(config, Plan(), tmp_path / "forked", fork_from=tmp_path / "empty")


def test_best_weights_are_the_evaluated_ones(config, tmp_path):
    from dataclasses import replace

    best = replace(config, selection="best")
    run = execute(best, Plan(), tmp_path / "run")
    assert (run.path / "best.pt").exists()
    assert resume(best, Plan(), run.path).is_finished


def test_averaged_weights_and_bf16_training_run(config, tmp_path):
    from dataclasses import replace

    changed = replace(config, ema=0.9, train_precision="bf16", accumulate=2, epochs=1)
    run = execute(changed, Plan(), tmp_path / "run")
    assert torch.isfinite(torch.cat([v.flatten().float() for v in final(run).values()])).all()


def test_normalisation_lies_inside_the_model(config, tmp_path):
    from dataclasses import replace

    run = execute(replace(config, normalize=True, epochs=1), Plan(), tmp_path / "run")
    assert not any("mean" in name and "running" not in name for name in final(run))


def test_tensorboard_writes_events_or_names_its_extra(config, tmp_path, monkeypatch):
    import sys
    from dataclasses import replace

    watched = replace(config, tensorboard=True, epochs=1)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"packages/part\[tensorboard\]"):
        execute(watched, Plan(), tmp_path / "without")
    monkeypatch.undo()
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    run = execute(watched, Plan(), tmp_path / "with")
    assert list((run.path / "tensorboard").glob("events*"))
