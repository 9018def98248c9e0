"""Two processes under torchrun: same data, synchronised statistics, the same loss, resumable.

AT, because its first gradient is large: that of TRADES begins near zero, where rounding decides signs.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest
from scripts import PACKAGE, SMALL


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@pytest.fixture(scope="module")
def launch(environment):
    def start(processes, *words):
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
            launcher += ["--master-port", str(free_port())]
        command = [*launcher, str(PACKAGE / "train_eval_part.py"), *map(str, words)]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=300, check=False
        )

    return start


def lines(run, kind="step"):
    text = (run / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, text) if line["kind"] == kind]


WORDS = [
    *SMALL,
    "--sync-bn",
    "--epochs",
    "8",
    "--warm-up",
    "2",
    "--checkpoint-every",
    "1",
    "--batch-size",
    "22",
]


@pytest.fixture(scope="module")
def runs(launch, folders, tmp_path_factory):
    paths = {}
    for processes in (1, 2):
        paths[processes] = tmp_path_factory.mktemp("processes") / str(processes)
        done = launch(processes, *WORDS, "--data-dir", folders, "--run-dir", paths[processes])
        assert done.returncode == 0, done.stderr
    return paths


def test_first_loss_and_masks_are_those_of_one_process(runs):
    one, two = lines(runs[1]), lines(runs[2])
    assert len(one) == len(two) == 24
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], abs=1e-6)
    assert [line["step"] for line in lines(runs[2], "refresh")] == [
        line["step"] for line in lines(runs[1], "refresh")
    ]


def test_losses_stay_close(runs):
    for one, two in zip(lines(runs[1])[:3], lines(runs[2])[:3], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=0.05)


def test_two_processes_resume(launch, runs):
    run = runs[2]
    before = (run / "metrics.jsonl").read_bytes()
    (run / "finished.json").unlink()
    manifest = json.loads((run / "checkpoints/manifest.json").read_text())
    manifest["checkpoints"] = manifest["checkpoints"][:1]  # as if killed before the last save
    (run / "checkpoints/manifest.json").write_text(json.dumps(manifest))
    done = launch(2, "--resume", run)
    assert done.returncode == 0, done.stderr
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_last_batch_of_one_image_is_worked_on_by_both(launch, folders, tmp_path):
    words = [*SMALL, "--sync-bn", "--epochs", "1", "--warm-up", "1", "--num-steps", "1"]
    words += ["--batch-size", "59", "--accumulate", "2", "--data-dir", folders]
    found = {}
    for processes in (1, 2):
        done = launch(processes, *words, "--run-dir", tmp_path / str(processes))
        assert done.returncode == 0, done.stderr
        found[processes] = [line["loss"] for line in lines(tmp_path / str(processes))]
    assert len(found[2]) == 2
    assert found[2] == pytest.approx(found[1], rel=0.05)
