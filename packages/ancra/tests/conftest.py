"""Fixtures of ANCRA's tests."""

from __future__ import annotations

import functools
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from runs import undrawn
from script_fixtures import environment, folders, in_process, script

from ancra import cli
from robust_core.data import load_dataset

__all__ = ["environment", "folders", "in_process", "script"]

TRAINING = [
    *(
        "--data",
        "shapes",
        "--model",
        "resnet8-s2",
        "--train-subset",
        "40",
        "--batch-size",
        "20",
        "--epochs",
        "1",
    ),
    *(
        "--num-steps",
        "1",
        "--threads",
        "1",
        "--precision",
        "float32",
        "--test-images",
        "40",
        "--validation",
        "10",
    ),
    *("--save-freq", "1"),
]


@pytest.fixture(scope="session")
def package():
    """Where ANCRA's scripts lie."""
    return Path(__file__).parents[1]


@functools.cache
def _loaded(name, root):
    return load_dataset(name, root, "test")


def _load_once(name, root, split, log=None):
    return _loaded(name, root)  # which images a run trains on is not what is tested


@pytest.fixture
def drawn_once(monkeypatch):
    """Let evaluation scripts load a data set once for all tests: drawing one takes longer than most of them."""
    monkeypatch.setattr("ancra.checkpoint.load_dataset", _load_once)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Runs of ANCRA-TRADES ("ancra") and of the TRADES baseline ("trades") on drawn images, a step each."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robust_core.run_data.load_dataset", _load_once)
        patch.setattr("robust_core.session.write_report", undrawn)
        for name, train in (("ancra", cli.train_cifar10_resnet), ("trades", cli.train_resnet18_baseline)):
            assert train([*TRAINING, "--run-dir", str(folder / name)]) == 0
    return folder


class FakeUmap(types.ModuleType):
    """Stands for umap-learn, whose compilation takes half a minute: keeps its settings, gives two features."""

    def __init__(self):
        super().__init__("umap")
        self.settings = {}

    def UMAP(self, **settings):
        self.settings = settings
        return types.SimpleNamespace(fit_transform=lambda features: features[:, :2].astype(np.float64))


@pytest.fixture
def umap(monkeypatch):
    fake = FakeUmap()
    monkeypatch.setitem(sys.modules, "umap", fake)
    return fake


@pytest.fixture
def runs(trained, tmp_path):
    """Return a folder with copies of the trained runs."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))
