"""The published scripts as a user starts them: train, test, files of the published names, resume after a kill."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_data import write_tiny_imagenet
from scripts import SMALL
from starts import start

from part import regional
from part.cli import train_eval_part, train_eval_part_t
from part.plan import PartPlan
from robust_core.evaluation import load_evaluation
from robust_core.models import build_model, load_weights

SCRIPTS = {
    "train_eval_part.py": ("PART", ["pre_part_epoch1.pth", "part_epoch1.pth"]),
    "train_eval_part_t.py": ("PART_T", ["pre_part_t_epoch1.pth", "model-epoch1.pth"]),
    "train_eval_part_m.py": ("PART_M", ["pre_part_m_epoch1.pth", "model-epoch1.pth"]),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_trains_tests_and_reports(script, folders, tmp_path, name):
    method, files = SCRIPTS[name]
    done = script(name, *SMALL, "--data-dir", folders)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "checkpoint/CIFAR10/resnet8-s2" / method
    for file in files:
        model = build_model("resnet8-s2", 10)
        load_weights(model, run / file)
    # what --overwrite takes away
    assert set(run.glob("*.pth")) == {
        path for mine in PartPlan().published_files({}) for path in run.glob(mine)
    }
    assert "CIFAR-10: 60 training images as image files, not the official release" in done.stdout
    assert re.search(r"PGD===\nTest: Accuracy: \d+/10 \(\d+\.\d\d%\), Robust Accuracy: \d+/10", done.stdout)
    assert "MMA===" in done.stdout
    page = (run / "report/report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    refreshed = [line for line in lines if line["kind"] == "refresh"]
    assert len(refreshed) == 1
    assert 0.0 < refreshed[0]["mask_density"] < 0.5
    # PGD within the masks has a line and a section of its own, and no part in the worst case
    assert done.stdout.index("MMA===") < done.stdout.index("PGD within the masks===\nTest: Accuracy: ")
    assert "Evaluation: pgd-20-mask" in page
    assert set(load_evaluation(run / "evaluation", "part").runs) == {"pgd-20", "mma"}


KILLS = {"float32": 5, "bf16": 2}
LONGER = [*SMALL, "--epochs", "4", "--warm-up", "2", "--checkpoint-every", "1", "--final-tests", "pgd-20"]
STEPS = 12


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, folders):
    """Return the uninterrupted run of a precision, trained once."""
    made = {}

    def run(precision):
        if precision not in made:
            path = tmp_path_factory.mktemp("whole") / precision
            words = [*LONGER, "--data-dir", folders, "--precision", precision, "--run-dir", path]
            code, said = start(train_eval_part, words).wait()
            assert code == 0, said
            made[precision] = path
        return made[precision]

    return run


def kill_at(step, words):
    """Start the script and kill it when the line of this step, or of a later one, appears."""
    live = start(train_eval_part, words)
    for line in live.lines():
        found = re.match(r"step (\d+)/", line)
        if found and int(found[1]) >= step:
            live.kill()
            assert live.process.exitcode == -signal.SIGKILL
            return
    raise AssertionError(f"the run ended before step {step}")


@pytest.mark.parametrize("precision", KILLS)
def test_a_run_killed_again_and_again_resumes_to_the_bit(folders, tmp_path, whole_run, precision):
    whole, run = whole_run(precision), tmp_path / "run"
    moments = sorted(random.Random(precision).sample(range(1, STEPS + 1), KILLS[precision]))
    words = [*LONGER, "--data-dir", folders, "--precision", precision, "--run-dir", run]
    for step in moments:
        kill_at(step, words)
        words = ["--resume", run]
    assert not (run / "finished.json").exists()
    code, said = start(train_eval_part, ["--resume", run]).wait()
    assert code == 0, said
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    first, second = newest(run), newest(whole)
    assert torch.equal(first["method"]["masks"]["packed"], second["method"]["masks"]["packed"])
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    assert (run / "part_epoch2.pth").read_bytes() == (whole / "part_epoch2.pth").read_bytes()


def newest(run):
    """Return the last masks of the masked phase and the final weights."""
    files = sorted((run / "checkpoints").glob("step-*.pt"))
    states = [torch.load(file, weights_only=True) for file in files[-2:]]
    assert states[0]["step"] + 1 == states[1]["step"] == STEPS
    return {"model": states[1]["model"], "method": states[0]["method"]}


def test_a_finished_run_is_left_as_it_is(in_process, whole_run):
    run = whole_run("float32")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    done = in_process(train_eval_part, ["--resume", run])
    assert done.code == 0
    assert "nothing to do" in done.out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_a_run_without_a_checkpoint_resumes_from_the_start(in_process, whole_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole_run("float32"), run)
    (run / "finished.json").unlink()
    shutil.rmtree(run / "checkpoints")
    done = in_process(train_eval_part, ["--resume", run])
    assert done.code == 0, done.err
    assert (run / "metrics.jsonl").read_bytes() == (whole_run("float32") / "metrics.jsonl").read_bytes()


def test_official_behaviour_trains(in_process, folders):
    words = [*SMALL, "--data-dir", folders, "--official", "--epochs", "3", "--final-tests", "pgd-20"]
    done = in_process(train_eval_part, [*words, "--run-dir", "run"])
    assert done.code == 0, done.err
    stored = json.loads(Path("run/config.json").read_text())["config"]
    axes = ("mask_rule", "mask_refresh", "cam_class", "lr_counter", "forwards", "start")
    assert [stored[name] for name in axes] == ["jet", "batch", "predicted", "restarted", "two", "unclipped"]


@pytest.mark.slow
def test_regional_epsilon_writes_its_table(script, in_process, folders, tmp_path):
    pairs = zip(SMALL[::2], SMALL[1::2], strict=True)
    small = [word for pair in pairs if pair[0] not in ("--save-freq", "--aa-images") for word in pair]
    words = [*small, "--data-dir", folders, "--run-dir", "regional"]
    done = script("regional_epsilon.py", *words)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "regional/table.md").read_text()
    assert "| bottom-right quadrant |" in table
    assert "46.75" in table
    assert (tmp_path / "regional/comparison.png").stat().st_size > 5000
    again = in_process(regional.main, words)
    assert again.out.count("nothing to do") == 3
    other = in_process(regional.main, [*words, "--seed", "2"])
    assert other.code == 2
    assert "holds a run with other settings" in other.err
    anew = in_process(regional.main, [*words, "--seed", "2", "--overwrite"])
    assert anew.code == 0, anew.err


REFUSALS = {
    "no such folder": (["--data-dir", "nowhere"], "nowhere"),
    "low above full": (
        ["--low-epsilon", "9/255"],
        "--low-epsilon 9/255 must lie between 0 and --epsilon 8/255",
    ),
    "negative budget": (["--epsilon", "-8/255"], "--epsilon -0.03"),
    "budget that is no number": (["--epsilon", "nan"], "--epsilon nan"),
    "budget in grey levels": (["--epsilon", "8", "--low-epsilon", "7"], "pixels of [0, 1]"),
    "unknown dataset": (["--data", "CIFAR11"], "did you mean 'CIFAR10'"),
    "unknown network": (["--model", "resnet81"], "Unknown"),
    "classes that do not fit": (["--num-class", "100"], "--num-class 100 does not fit cifar10 (10 classes)"),
    "warm-up beyond the end": (["--warm-up", "9"], "--warm-up 9 must not exceed --epochs 2"),
    "another script's method": (["--method", "mart"], "Unknown method 'mart'"),
    "resume and overwrite": (["--resume", "nowhere", "--overwrite"], "leave one of them out"),
    "a run that is not there": (["--resume", "nowhere"], "no run directory"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_mistake_is_one_sentence_and_exit_code_2(in_process, folders, case):
    words, told = REFUSALS[case]
    done = in_process(
        train_eval_part, [*SMALL, "--data-dir", folders, *words] if words[0] != "--resume" else words
    )
    assert done.code == 2
    assert told in done.err
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err


def test_classes_are_counted_in_the_data_that_is_there(in_process, tmp_path):
    write_tiny_imagenet(tmp_path)
    words = [
        "--data",
        "TinyImagenet",
        "--data-dir",
        tmp_path,
        "--model",
        "preactresnet18-w4",
        "--run-dir",
        "run",
    ]
    words += ["--scale", "smoke", "--natural-steps", "1", "--warm-up-steps", "1", "--main-steps", "1"]
    words += ["--num-steps", "1", "--batch-size", "3", "--validation", "0", "--mask-control", "random"]
    refused = in_process(train_eval_part, [*words, "--num-class", "200"])
    assert refused.code == 2
    assert "--num-class 200 does not fit tiny-imagenet (3 classes)" in refused.err
    done = in_process(train_eval_part, [*words, "--num-class", "3"])
    assert done.code == 0, done.err
    with np.load("run/gallery.npz") as gallery:
        assert gallery["mask"].shape == (3, 1, 64, 64)
        assert 0.0 < gallery["mask"].mean() < 0.6


def test_resume_with_other_settings_says_which(in_process, whole_run):
    done = in_process(train_eval_part, ["--resume", whole_run("float32"), "--lr", "0.5", "--seed", "1"])
    assert done.code == 2
    assert "--lr 0.5 (the run has 0.01)" in done.err
    assert "--seed" not in done.err


def test_another_script_does_not_resume(in_process, whole_run):
    done = in_process(train_eval_part_t, ["--resume", whole_run("float32")])
    assert done.code == 2
    assert "holds a run of part, which train_eval_part_t.py does not train" in done.err


def test_resume_with_changed_data_is_refused(in_process, whole_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole_run("float32"), run)
    (run / "finished.json").unlink()
    record = json.loads((run / "config.json").read_text())
    record["data"]["train"]["sha256"] = "0" * 64
    (run / "config.json").write_text(json.dumps(record))
    done = in_process(train_eval_part, ["--resume", run])
    assert done.code == 2
    assert "The train data" in done.err


def test_a_run_is_not_overwritten_unasked(in_process, whole_run, folders):
    done = in_process(train_eval_part, [*SMALL, "--data-dir", folders, "--run-dir", whole_run("float32")])
    assert done.code == 2
    assert "--resume" in done.err


def test_autoattack_asked_for_without_its_package(in_process, folders, monkeypatch):
    monkeypatch.setattr("robust_core.extras.autoattack_available", lambda: False)
    done = in_process(train_eval_part, [*SMALL, "--data-dir", folders, "--aa-images", "5"])
    assert done.code == 2
    assert "packages/part[eval]" in done.err


def test_autoattack_not_asked_for_is_not_run_and_said(in_process, monkeypatch, folders):
    monkeypatch.setattr("robust_core.extras.autoattack_available", lambda: False)
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    words = [word for word in SMALL if word not in ("--aa-images", "0")]
    done = in_process(train_eval_part, [*words, "--data-dir", folders, "--run-dir", "run"])
    assert done.code == 0
    assert "AutoAttack will not be run" in done.out
    assert "AA===\nnot run" in done.out
