"""The published scripts as a user starts them: train, test, files of the published names, resume after a kill."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys

import pytest
import torch
from scripts import PACKAGE, SMALL

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
    run = tmp_path / "checkpoint/CIFAR10/resnet18-w4" / method
    for file in files:
        model = build_model("resnet18-w4", 10)
        load_weights(model, run / file)
    assert re.search(r"PGD===\nTest: Accuracy: \d+/10 \(\d+\.\d\d%\), Robust Accuracy: \d+/10", done.stdout)
    assert "MMA===" in done.stdout
    page = (run / "report/report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    refreshed = [line for line in lines if line["kind"] == "refresh"]
    assert len(refreshed) == 1
    assert 0.0 < refreshed[0]["mask_density"] < 0.5


def test_notes_name_what_is_not_official(script, folders):
    done = script("train_eval_part.py", *SMALL, "--data-dir", folders, "--epochs", "1", "--warm-up", "1")
    assert "CIFAR-10: 60 training images" in done.stdout
    assert "not the official release" in done.stdout


@pytest.mark.parametrize(
    ("precision", "moment"), [*(("float32", moment) for moment in range(5)), ("bf16", 0), ("bf16", 1)]
)
def test_a_killed_run_resumes_to_the_bit(
    script, environment, folders, tmp_path, whole_runs, moment, precision
):
    whole = whole_runs[precision]
    lines = random.Random(f"{moment}{precision}").randrange(1, 7)
    run = tmp_path / "run"
    words = [
        *SMALL,
        "--data-dir",
        folders,
        "--precision",
        precision,
        "--checkpoint-every",
        "1",
        "--run-dir",
        run,
    ]
    command = [sys.executable, "-u", str(PACKAGE / "train_eval_part.py"), *map(str, words)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as live:
        seen = 0
        for line in live.stdout:
            seen += line.startswith("step ")
            if seen >= lines:
                os.kill(live.pid, signal.SIGKILL)
                break
        live.stdout.read()
    assert not (run / "finished.json").exists()
    done = script("train_eval_part.py", "--resume", run)
    assert done.returncode == 0, done.stderr
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    first, second = newest(run), newest(whole)
    assert torch.equal(first["method"]["masks"]["packed"], second["method"]["masks"]["packed"])
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    assert (run / "part_epoch1.pth").exists()


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory, folders, environment):
    runs = {}
    for precision in ("float32", "bf16"):
        path = tmp_path_factory.mktemp("whole") / precision
        words = [
            *SMALL,
            "--data-dir",
            folders,
            "--precision",
            precision,
            "--checkpoint-every",
            "1",
            "--run-dir",
            path,
        ]
        command = [sys.executable, str(PACKAGE / "train_eval_part.py"), *map(str, words)]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        runs[precision] = path
    return runs


def newest(run):
    """Return the last checkpoint inside the masked phase and the final weights."""
    files = sorted((run / "checkpoints").glob("step-*.pt"))
    states = [torch.load(file, weights_only=True) for file in files[-2:]]
    assert states[0]["step"] + 1 == states[1]["step"] == 6
    return {"model": states[1]["model"], "method": states[0]["method"]}


def test_a_finished_run_is_left_as_it_is(script, whole_runs):
    run = whole_runs["float32"]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    done = script("train_eval_part.py", "--resume", run)
    assert done.returncode == 0
    assert "nothing to do" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_a_run_without_a_checkpoint_resumes_from_the_start(script, whole_runs, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(whole_runs["float32"], run)
    (run / "finished.json").unlink()
    shutil.rmtree(run / "checkpoints")
    done = script("train_eval_part.py", "--resume", run)
    assert done.returncode == 0, done.stderr
    assert (run / "metrics.jsonl").read_bytes() == (whole_runs["float32"] / "metrics.jsonl").read_bytes()


def test_official_behaviour_trains(script, folders, tmp_path):
    done = script(
        "train_eval_part.py", *SMALL, "--data-dir", folders, "--official", "--run-dir", "run", "--epochs", "3"
    )
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "run/config.json").read_text())["config"]
    axes = ("mask_rule", "mask_refresh", "cam_class", "lr_counter", "forwards", "start")
    assert [stored[name] for name in axes] == ["jet", "batch", "predicted", "restarted", "two", "unclipped"]


def test_regional_epsilon_writes_its_table(script, folders, tmp_path):
    words = [*SMALL, "--data-dir", folders, "--run-dir", "regional"]
    done = script("regional_epsilon.py", *words)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "regional/table.md").read_text()
    assert "| bottom-right quadrant |" in table
    assert "46.75" in table
    assert (tmp_path / "regional/comparison.png").stat().st_size > 5000
    again = script("regional_epsilon.py", *words)
    assert again.stdout.count("nothing to do") == 3
    other = script("regional_epsilon.py", *words, "--seed", "2")
    assert other.returncode == 2
    assert "holds a run with other settings" in other.stderr
    anew = script("regional_epsilon.py", *words, "--seed", "2", "--overwrite")
    assert anew.returncode == 0, anew.stderr


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
def test_a_mistake_is_one_sentence_and_exit_code_2(in_process, folders, tmp_path, monkeypatch, case):
    words, told = REFUSALS[case]
    monkeypatch.chdir(tmp_path)
    code, err = in_process([*SMALL, "--data-dir", str(folders), *words] if words[0] != "--resume" else words)
    assert code == 2
    assert told in err
    assert err.startswith("error: ")
    assert "Traceback" not in err


@pytest.fixture
def in_process(capsys):
    from part.cli import train_eval_part

    def start(words):
        try:
            code = train_eval_part(list(map(str, words)))
        except SystemExit as left:  # the parser's way to end
            code = left.code
        return code, capsys.readouterr().err

    return start


def test_resume_with_other_settings_says_which(in_process, whole_runs):
    code, err = in_process(["--resume", whole_runs["float32"], "--lr", "0.5", "--seed", "1"])
    assert code == 2
    assert "--lr 0.5 (the run has 0.01)" in err
    assert "--seed" not in err


def test_another_script_does_not_resume(whole_runs, capsys):
    from part.cli import train_eval_part_t

    assert train_eval_part_t(["--resume", str(whole_runs["float32"])]) == 2
    assert "holds a run of part, which train_eval_part_t.py does not train" in capsys.readouterr().err


def test_resume_with_changed_data_is_refused(in_process, whole_runs, tmp_path, folders):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(whole_runs["float32"], run)
    (run / "finished.json").unlink()
    record = json.loads((run / "config.json").read_text())
    record["data"]["train"]["sha256"] = "0" * 64
    (run / "config.json").write_text(json.dumps(record))
    code, err = in_process(["--resume", run])
    assert code == 2
    assert "The train data" in err


def test_a_run_is_not_overwritten_unasked(in_process, whole_runs, folders):
    code, err = in_process([*SMALL, "--data-dir", folders, "--run-dir", whole_runs["float32"]])
    assert code == 2
    assert "--resume" in err


def test_autoattack_asked_for_without_its_package(in_process, folders, monkeypatch, tmp_path):
    monkeypatch.setattr("part.cli.autoattack_missing", lambda: True)
    monkeypatch.chdir(tmp_path)
    code, err = in_process([*SMALL, "--data-dir", folders, "--aa-images", "5"])
    assert code == 2
    assert "packages/part[eval]" in err


def test_autoattack_not_asked_for_is_not_run_and_said(monkeypatch, folders, tmp_path, capsys):
    from part.cli import train_eval_part

    monkeypatch.setattr("part.cli.autoattack_missing", lambda: True)
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    monkeypatch.chdir(tmp_path)
    words = [word for word in SMALL if word not in ("--aa-images", "0")]
    assert train_eval_part([*words, "--data-dir", str(folders), "--run-dir", "run"]) == 0
    out = capsys.readouterr().out
    assert "AutoAttack will not be run" in out
    assert "AA===\nnot run" in out
