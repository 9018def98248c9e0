"""Two processes under ``torchrun`` give the group weights, losses, gradients and logs of one with the same batches."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from expt_runs import GDRO, WATERBIRDS, finished, last_checkpoint, metrics, run_undrawn, table
from starts import start

# the published attack starts 0.0001 away from an image, where rounding decides signs: no attack step, a wide start
CLOSE = ["--attack_iters", "0", "--random_init", "0.02", "--beta", "60", "--sync-bn"]
CASES = {
    "official": [*GDRO],
    "corrected": [*GDRO, "--weights", "corrected"],
    "pgd": ["--train_type", "pgd", "--robust", "--use_normalized_loss"],
    "CGD": ["--train_type", "CGD"],
    "WAT": ["--train_type", "WAT"],
    "DAFA": ["--train_type", "DAFA"],
    "CFA": ["--train_type", "CFA"],
    "FAT": ["--train_type", "FAT"],
}
QUICK = ("corrected",)


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def both(*words):
    """Start two processes as torchrun does, without a new torch for each."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(free_port())
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    for live in [start(run_undrawn, words, {**shared, **rank}) for rank in ranks]:
        code, said = live.wait()
        assert code == 0, said


def close(first, second):
    """Two sets of tensors are equal to the rounding of float32, in the scale of each tensor and of the largest."""
    assert first.keys() == second.keys()
    largest = max(float(value.abs().max()) for value in first.values())
    for name, value in first.items():
        bound = 1e-4 * float(value.abs().max()) + 2e-5 * largest
        assert float((value.double() - second[name].double()).abs().max()) <= bound, name


@pytest.mark.filterwarnings("ignore:.* follow the epoch before")
@pytest.mark.parametrize(
    "case", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_one_step_is_that_of_one_process(case, birds, tmp_path):
    # one batch of all 16 images
    words = [*WATERBIRDS, birds, *CASES[case], *CLOSE, "--batch_size", "16", "--n_epochs", "1"]
    words += ["--robust_step_size", "0.5", "--selection", "last", "--momentum", "0.9", "--weight_decay", "0"]
    words = [str(word) for word in words]
    assert run_undrawn([*words, "--run-dir", str(tmp_path / "one")]) == 0
    both(*words, "--run-dir", tmp_path / "two")
    one, two = tmp_path / "one", tmp_path / "two"
    states = [last_checkpoint(run) for run in (one, two)]
    close(*(state["model"] for state in states))
    # momentum holds exactly the gradients behind the first step
    gradients = [
        {str(key): value["momentum_buffer"] for key, value in state["optimizer"]["state"].items()}
        for state in states
    ]
    assert max(float(value.abs().max()) for value in gradients[0].values()) > 1e-3
    close(*gradients)
    (first,), (second,) = (metrics(run, "step") for run in (one, two))
    for name in first:
        if isinstance(first[name], float):
            assert second[name] == pytest.approx(first[name], rel=1e-4, abs=1e-6), name
    logged = [metrics(run, "groups") for run in (one, two)]
    assert len(logged[0]) == len(logged[1]) == (case in ("official", "corrected", "pgd"))
    for lines in zip(*logged, strict=True):
        for name in ("natural_weights", "adversarial_weights"):
            assert lines[1][name] == pytest.approx(lines[0][name], abs=2e-5)
        assert lines[1]["row"] == pytest.approx(lines[0]["row"], rel=1e-4, abs=1e-6)
    for split in ("train", "val"):
        for rows in zip(*(table(run / f"unit{split}.csv") for run in (one, two)), strict=True):
            numbers = [{name: float(value) for name, value in row.items()} for row in rows]
            assert numbers[1] == pytest.approx(numbers[0], rel=1e-3, abs=1e-5)
    assert finished(two)["method"] == finished(one)["method"]


@pytest.mark.slow
def test_weights_and_losses_stay_those_of_one_process_over_uneven_batches(birds, tmp_path):
    # 16 images make batches of 5, 5, 5 and 1, which no two processes share evenly
    words = [*WATERBIRDS, birds, *GDRO, *CLOSE, "--batch_size", "5", "--n_epochs", "1", "--log_every", "1"]
    words = [
        str(word) for word in [*words, "--robust_step_size", "0.5", "--lr", "0.001", "--selection", "last"]
    ]
    assert run_undrawn([*words, "--run-dir", str(tmp_path / "one")]) == 0
    both(*words, "--run-dir", tmp_path / "two")
    lines = [metrics(tmp_path / name, "groups") for name in ("one", "two")]
    assert len(lines[0]) == len(lines[1]) == 4
    for one, two in zip(*lines, strict=True):
        assert two["natural_weights"] == pytest.approx(one["natural_weights"], abs=1e-3)
        assert two["adversarial_weights"] == pytest.approx(one["adversarial_weights"], abs=1e-3)
        counts = [name for name in one["row"] if "count" in name]
        assert [two["row"][name] for name in counts] == [one["row"][name] for name in counts]


LAST_BATCH = {
    "erm": (["--robust", "--train_grad"], "groups"),
    "CFA": (["--epsilon", "8/255"], "refresh"),
    "DAFA": ([], "refresh"),
    "CGD": ([], "step"),
    "FAT": ([], "step"),
    "WAT": ([], "step"),
    "trades": ([*GDRO[2:], "--weights", "corrected"], "groups"),
}


@pytest.mark.parametrize(
    "case", [name if name == "erm" else pytest.param(name, marks=pytest.mark.slow) for name in LAST_BATCH]
)
def test_a_last_batch_of_one_image_counts_once_on_two_processes(case, birds, tmp_path):
    # 16 images make batches of 5, 5, 5 and 1; each process has that last image
    given, kind = LAST_BATCH[case]
    words = [*WATERBIRDS, birds, "--train_type", case, *CLOSE, *given, "--batch_size", "5", "--lr", "0"]
    words += ["--weight_decay", "0", "--momentum", "0.9", "--log_every", "1", "--selection", "last"]
    words = [str(word) for word in words]
    assert run_undrawn([*words, "--run-dir", str(tmp_path / "one")]) == 0
    both(*words, "--run-dir", tmp_path / "two")
    lines = [metrics(tmp_path / name, kind) for name in ("one", "two")]
    assert len(lines[0]) == len(lines[1]) > 0
    for one, two in zip(*lines, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            if not isinstance(value, str):
                assert two[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    states = [last_checkpoint(tmp_path / name) for name in ("one", "two")]
    close(*(state["model"] for state in states))  # of which the running statistics have moved
    # with rate 0 the momentum holds the gradients of all steps, the last the most
    close(
        *(
            {str(key): value["momentum_buffer"] for key, value in state["optimizer"]["state"].items()}
            for state in states
        )
    )


@pytest.mark.slow
def test_two_processes_resume_to_the_same_bits(birds, tmp_path):
    words = [
        *WATERBIRDS,
        birds,
        *GDRO,
        "--batch_size",
        "7",
        "--checkpoint-every",
        "1",
        "--log_every",
        "1",
        "--sync-bn",
    ]
    both(*words, "--run-dir", tmp_path / "whole")
    both(*words, "--run-dir", tmp_path / "run")
    run = tmp_path / "run"
    before = (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert (run / "metrics.jsonl").read_bytes() == before
    newest = max((run / "checkpoints").glob("step-*.pt"))
    (run / "finished.json").unlink()
    newest.write_bytes(b"cut short by a kill")
    both("--resume", run)
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_torchrun_starts_the_script(environment, package, birds, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    words = [*WATERBIRDS, birds, *GDRO, "--sync-bn", "--run-dir", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, *launcher, str(package / "run_expt.py"), *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(table(Path(tmp_path / "run/unittest.csv"))) == 1
