"""Fixtures of the papers' script tests; each conftest imports them and says where its package lies."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from runs import write_folders

ROOT = Path(__file__).parents[4]


@dataclass
class Done:
    """How a script ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """CIFAR-10 as class folders: 60 training and 60 test images."""
    return write_folders(tmp_path_factory.mktemp("cifar10"))


@pytest.fixture(scope="session")
def environment():
    """The environment in which scripts are started: ours, one thread."""
    paths = [str(path) for path in (*sorted(ROOT.glob("packages/*/src")), ROOT)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def script(environment, package, tmp_path):
    """Start a script of the package as a user would; returns the finished process."""

    def start(name, *words, cwd=None):
        command = [sys.executable, str(package / name), *map(str, words)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environment,
            cwd=cwd or tmp_path,
            timeout=300,
            check=False,
        )

    return start


@pytest.fixture
def in_process(capsys, tmp_path, monkeypatch):
    """Call a script's function in an empty folder, where the start of a process is not what is tested."""
    monkeypatch.chdir(tmp_path)

    def start(main, words):
        capsys.readouterr()
        try:
            code = main(list(map(str, words)))
        except SystemExit as left:  # the parser's way to end
            code = left.code
        return Done(code, *capsys.readouterr())

    return start
