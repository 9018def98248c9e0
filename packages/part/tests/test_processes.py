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
from starts import start

from part.cli import train_eval_part


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def torchrun(environment, *words):
    """Start the script on two processes as a user does."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command = [sys.executable, *launcher, str(PACKAGE / "train_eval_part.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def both(*words):
    """Start two processes as torchrun does, without a new torch for each."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(free_port())
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    for live in [start(train_eval_part, words, {**shared, **rank}) for rank in ranks]:
        code, said = live.wait()
        assert code == 0, said


def lines(run, kind="step"):
    text = (run / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, text) if line["kind"] == kind]


QUICK = [*SMALL, "--sync-bn", "--final-tests", "pgd-20", "--test-images", "2"]
WORDS = [*QUICK, "--epochs", "7", "--warm-up", "2", "--checkpoint-every", "1", "--batch-size", "22"]
STEPS = 21


@pytest.fixture(scope="module")
def runs(environment, folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    paths = {1: folder / "one", 2: folder / "two"}
    words = [*WORDS, "--data-dir", str(folders)]
    assert train_eval_part([*words, "--run-dir", str(paths[1])]) == 0
    torchrun(environment, *words, "--run-dir", paths[2])
    return paths


def test_first_loss_and_masks_are_those_of_one_process(runs):
    one, two = lines(runs[1]), lines(runs[2])
    assert len(one) == len(two) == STEPS
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], abs=1e-6)
    assert [line["step"] for line in lines(runs[2], "refresh")] == [
        line["step"] for line in lines(runs[1], "refresh")
    ]


def test_losses_stay_close(runs):
    for one, two in zip(lines(runs[1])[:3], lines(runs[2])[:3], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=0.05)


def test_two_processes_resume(runs):
    run = runs[2]
    before = (run / "metrics.jsonl").read_bytes()
    (run / "finished.json").unlink()
    manifest = json.loads((run / "checkpoints/manifest.json").read_text())
    manifest["checkpoints"] = manifest["checkpoints"][:1]  # as if killed before the last save
    (run / "checkpoints/manifest.json").write_text(json.dumps(manifest))
    both("--resume", run)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_last_batch_of_one_image_is_worked_on_by_both(folders, tmp_path):
    words = [*QUICK, "--epochs", "1", "--warm-up", "1", "--num-steps", "1"]
    words += ["--batch-size", "59", "--accumulate", "2", "--data-dir", str(folders)]
    assert train_eval_part([*words, "--run-dir", str(tmp_path / "one")]) == 0
    both(*words, "--run-dir", tmp_path / "two")
    found = [[line["loss"] for line in lines(tmp_path / name)] for name in ("one", "two")]
    assert len(found[1]) == 2
    assert found[1] == pytest.approx(found[0], rel=0.05)
