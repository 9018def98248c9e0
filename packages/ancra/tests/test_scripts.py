"""The training scripts as a user starts them: train, files of the published names, resume after kills, mistakes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from starts import start

from ancra import cli
from ancra.networks import build_network
from ancra.plan import AncraPlan
from ancra.scripts import SCRIPTS, resolve
from robust_core.errors import UserError
from robust_core.models import build_model, load_weights

SMALL = [
    *("--model", "resnet8-s2", "--batch-size", "20", "--epochs", "2", "--num-steps", "1", "--save-freq", "1"),
    *("--log-interval", "1", "--threads", "1", "--test-images", "4", "--precision", "float32"),
    *("--validation", "10", "--curve-images", "5"),
]


def test_a_script_trains_tests_and_reports(script, folders, tmp_path):
    done = script("train_CIFAR10_ResNet.py", *SMALL, "--data-dir", folders)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "model/ANCRA-strategy-random_adv-alpha-1.0-beta-6.0-zeta-3.0-seed-1"
    for name in ("model-1.pt", "model-2.pt", "model-wrn-last.pt", "best_adv_model.pt"):
        load_weights(build_network("resnet8-s2", 10), run / name)
    # what --overwrite takes away besides the core's own best.pt
    mine = {path for pattern in AncraPlan().published_files({}) for path in run.glob(pattern)}
    assert mine == set(run.glob("*.pt")) - {run / "best.pt"}
    assert "Test: PGD-40 Accuracy_adv" in done.stdout
    assert (run / "report/report.html").exists()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert {"ap_l2", "an_l2", "blocks_agree", "exclusion_loss"} <= set(steps[0])


@pytest.mark.parametrize(
    ("main", "words", "attention"),
    [
        (cli.train_resnet18_baseline, ["--official"], "none"),
        (cli.train_wide_resnet_baseline, ["--method", "pgd"], "none"),
        (cli.train_preact_resnet_baseline, ["--data", "cifar10", "--method", "mart"], "none"),
        (cli.train_cifar10_wide_resnet, ["--model", "wrn-16-1", "--attention", "own"], "own"),
        (cli.train_tiny_imagenet_preact_resnet, ["--data", "cifar10", "--strategy", "soft"], "reverse"),
    ],
)
def test_every_other_script_trains(in_process, folders, main, words, attention):
    words = [*SMALL, "--epochs", "1", "--data-dir", folders, "--run-dir", "run", *words]
    done = in_process(main, words)
    assert done.code == 0, done.err
    stored = json.loads(Path("run/config.json").read_text())["config"]
    assert stored["attention"] == attention
    method = json.loads(Path("run/finished.json").read_text())["method"]
    assert method.startswith("ANCRA-") == (attention != "none")
    build = build_network if attention != "none" else build_model
    options = {"attention": attention} if attention != "none" else {}
    load_weights(build(stored["model"], 10, **options), Path("run/model-1.pt"))


def test_a_run_killed_again_and_again_resumes_to_the_bit(folders, tmp_path):
    words = [*SMALL, "--data-dir", folders, "--checkpoint-every", "1", "--selection", "last"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    code, said = start(cli.train_cifar10_resnet, [*words, "--run-dir", whole]).wait()
    assert code == 0, said
    begin = [*words, "--run-dir", run]
    for step in (2, 4, 5):
        live = start(cli.train_cifar10_resnet, begin)
        for line in live.lines():
            if line.startswith(f"step {step}/"):
                break
        live.kill()
        assert live.process.exitcode == -signal.SIGKILL
        begin = ["--resume", run]
    code, said = start(cli.train_cifar10_resnet, begin).wait()
    assert code == 0, said
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    first, second = (torch.load(path / "model-wrn-last.pt", weights_only=True) for path in (run, whole))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_mistakes_are_one_sentence_and_exit_code_2(in_process, folders, tmp_path):
    words = [*SMALL, "--data-dir", folders, "--run-dir", "run"]
    torch.save(build_model("resnet8-s2", 10).state_dict(), "plain.pt")
    for changes, told in (
        (["--sample_class_number", "10"], "more than the other classes (9)"),
        (["--strategy", "medium"], "Unknown strategy"),
        (["--model", "wrn-10-1"], "one block in its last stage"),
        (["--restart_epoch", "2", "--ckpt_url", "plain.pt"], "another architecture"),
        (["--restart_epoch", "2", "--ckpt_url", "none.pt"], "is no file"),
    ):
        done = in_process(cli.train_cifar10_resnet, [*words, *changes])
        assert done.code == 2, changes
        assert told in done.err
        assert "Traceback" not in done.err
        assert not (tmp_path / "run").exists()


def test_autoattack_without_its_package_is_said_at_the_start(monkeypatch):
    monkeypatch.setattr("robust_core.extras.autoattack_available", lambda: False)
    script = SCRIPTS["train_CIFAR10_ResNet"]
    assert resolve(script, {})[1] == resolve(script, {"aa_images": 0})[1] == []
    assert "AutoAttack will not be run" in resolve(script, {"scale": "reduced"})[1][0]
    with pytest.raises(UserError, match=r"--aa-images 5 needs .*packages/ancra\[eval\]"):
        resolve(script, {"aa_images": 5})
