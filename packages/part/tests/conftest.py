"""Fixtures of PART's tests."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from runs import write_folders
from scripts import PACKAGE, ROOT


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """CIFAR-10 as class folders: 60 training and 60 test images."""
    return write_folders(tmp_path_factory.mktemp("cifar10"))


@pytest.fixture(scope="session")
def environment():
    """The environment in which scripts are started: ours, warnings as errors, one thread."""
    paths = [str(ROOT / "packages/core/src"), str(ROOT / "packages/part/src"), str(ROOT)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def script(environment, tmp_path):
    """Start a script as a user would; returns the finished process."""

    def start(name, *words, cwd=None):
        command = [sys.executable, str(PACKAGE / name), *map(str, words)]
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
