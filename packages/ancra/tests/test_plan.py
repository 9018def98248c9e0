"""ANCRA's part of a session: which weights lie under the published names, what the final lines count."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from runs import image_set, same, undrawn

from ancra.networks import build_network
from ancra.plan import AncraPlan, published_lines, write_newest
from ancra.scripts import SCRIPTS, resolve
from robust_core.attacks.autoattack import AutoAttackResult
from robust_core.evaluation import Member, Protocol, evaluate
from robust_core.plan import Beginning
from robust_core.session import execute, resume
from robust_core.training import RunDirectory

SETTINGS = {
    **{"model": "resnet8-s2", "data": "cifar10", "batch_size": 20, "num_steps": 1, "validation": 4},
    **{"precision": "float32", "threads": 1, "device": "cpu", "test_images": 4, "curve_images": 4},
    **{"save_freq": 1, "schedule": "linear", "warm_up_steps": 3, "main_steps": 4},
    **{"epsilon": 0.5, "step_size": 0.1},  # nothing is robust: the first epoch stays the best
}


@pytest.fixture(autouse=True)
def unreported(monkeypatch):
    monkeypatch.setattr("robust_core.session.write_report", undrawn)


@pytest.fixture
def config(folders):
    return resolve(SCRIPTS["train_ResNet18_baseline"], {**SETTINGS, "data_dir": str(folders)})[0]


def quiet(_):
    return None


def weights(run, name):
    return torch.load(run.path / name, weights_only=True)


def test_published_files_are_of_the_methods_phase_and_the_newest_is_the_last(config, tmp_path):
    beginning = execute(config, Beginning(AncraPlan(), 1), tmp_path / "beginning", say=quiet)
    published = AncraPlan().published_files({})
    assert not [path for pattern in published for path in beginning.path.glob(pattern)]
    run = execute(config, AncraPlan(), tmp_path / "run", fork_from=beginning.path, say=quiet)
    state = run.checkpoints.latest()
    assert state["step"] == 7  # epochs of three steps: the method's second is never whole
    assert same(weights(run, "best_adv_model.pt"), weights(run, "model-1.pt"))
    for killed in (True, False):
        assert sorted(path.name for path in run.path.glob("model-[0-9]*.pt")) == ["model-1.pt"]
        assert same(weights(run, "model-wrn-last.pt"), state["model"])
        assert not same(weights(run, "model-wrn-last.pt"), weights(run, "model-1.pt"))
        if killed:  # before the very end
            for name in ("finished.json", "model-wrn-last.pt"):
                (run.path / name).unlink()
            assert resume(config, AncraPlan(), run.path, say=quiet).is_finished


def test_the_newest_is_the_average_if_one_is_kept(tmp_path):
    run = RunDirectory(tmp_path, {})
    for average, kept in ((None, 1.0), ({"weights": {"w": torch.full((1,), 2.0)}}, 2.0)):
        run.checkpoints.save({"step": 1, "model": {"w": torch.ones(1)}, "average": average}, 1)
        write_newest(run)
        assert weights(run, "model-wrn-last.pt") == {"w": torch.full((1,), kept)}


def test_numbers_count_from_the_restart(tmp_path):
    export = AncraPlan().export(SimpleNamespace(restart_epoch=75, save_freq=2), tmp_path)
    for name, epoch in (("warm-up", 4), ("main", 1), ("main", 2)):
        export(SimpleNamespace(name=name), epoch, torch.nn.Linear(1, 1))
    assert {path.name for path in tmp_path.iterdir()} == {"model-wrn-last.pt", "model-76.pt"}


@pytest.mark.parametrize("available", [True, False])
def test_the_lines_count_the_images_that_an_attack_saw(monkeypatch, available):
    monkeypatch.setattr("robust_core.attacks.autoattack_available", lambda: available)
    monkeypatch.setattr(
        "robust_core.attacks.autoattack",
        lambda network, images, labels, *, eps, **_: AutoAttackResult(images, (), (), ()),
    )
    attacks = Protocol(
        "pgd",
        (
            Member("pgd-1", "pgd", {"eps": 0.0, "step_size": 0.0, "steps": 1}),
            Member("autoattack", "autoattack", {"eps": 0.1}, images=8),
        ),
    )
    found = evaluate(build_network("resnet8-s2", 10, seed=0).eval(), image_set(40), attacks)
    right, first = int(found.natural.sum()), int(found.natural[:8].sum())
    counted = f"Test: AUTOATTACK Accuracy_adv {first}/8 ({100 * first / 8:.2f}%)"
    missing = "Test: AUTOATTACK not run: AutoAttack needs the package pyautoattack"
    *lines, last = published_lines(found)
    assert lines == [
        f"Test: Accuracy {right}/40 ({100 * right / 40:.2f}%)",
        f"Test: PGD-1 Accuracy_adv {right}/40 ({100 * right / 40:.2f}%)",
    ]
    assert last.startswith(counted if available else missing)
