"""Folders are held by one process at a time, and workers end with the process that began them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from robust_core.errors import UserError
from robust_core.storage import held, remove_abandoned

HOLDER = """
import sys
from pathlib import Path
from robust_core.storage import held

with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
PARENT = """
import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor
from robust_core.workers import begin_worker

def wait():
    print("at work", flush=True)
    threading.Event().wait()

if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=begin_worker) as pool:
        pool.submit(wait).result()
"""


def child(path, text, *arguments):
    path.write_text(text)
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, str(path), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def test_a_folder_is_held_once_and_let_go(tmp_path):
    with held(tmp_path / "run"), pytest.raises(UserError, match="Another process is writing the run"):
        held(tmp_path / "run").__enter__()
    with pytest.raises(ZeroDivisionError), held(tmp_path / "run"):
        raise ZeroDivisionError
    with held(tmp_path / "run"):
        assert list((tmp_path / "run").iterdir()) == []


def test_a_killed_process_lets_go(tmp_path):
    with child(tmp_path / "holder.py", HOLDER, str(tmp_path / "run")) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="wait for its end or stop it"):
            held(tmp_path / "run").__enter__()
        process.send_signal(signal.SIGKILL)
        process.wait()
    with held(tmp_path / "run"):
        pass


def test_what_killed_processes_left_is_removed(tmp_path):
    with child(tmp_path / "other.py", "input()") as alive:
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        (tmp_path / "checkpoints" / "deeper").mkdir(parents=True)
        left = [f".x.pt.{dead.pid}.tmp", f"checkpoints/.x.pt.{dead.pid}.tmp", f".x.{os.getpid()}.tmp"]
        kept = [
            *(f"checkpoints/.x.pt.{alive.pid}.tmp", f"checkpoints/deeper/.x.pt.{dead.pid}.tmp", ".x.pt.tmp"),
            *(f"x.pt.{dead.pid}.tmp", f".x.pt.{dead.pid}.part", f".x.{10**30}.tmp", f".x.{alive.pid}.tmp"),
        ]
        for name in (*left, *kept):
            (tmp_path / name).write_text("x")
        (tmp_path / f".folder.{dead.pid}.tmp").mkdir()
        remove_abandoned(tmp_path)
        assert not any((tmp_path / name).exists() for name in left)
        assert all((tmp_path / name).exists() for name in kept)
        alive.communicate("\n", timeout=60)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="Cannot write"):
        held(tmp_path / "file" / "run").__enter__()


def test_a_worker_ends_when_its_parent_is_killed(tmp_path):
    with child(tmp_path / "parent.py", PARENT) as process:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGKILL)
        # the worker has this end of the pipe too: its end is the end of the file
        assert process.communicate(timeout=60)[0] == ""
