"""Fixtures of GDRO-AT's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from expt_runs import run_undrawn
from published_folders import write_celeba, write_covid_list, write_covid_sites, write_waterbirds
from script_fixtures import environment, folders, in_process, script

__all__ = ["environment", "folders", "in_process", "script"]


@pytest.fixture(scope="session")
def package():
    """Where the scripts of GDRO-AT lie."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def birds(tmp_path_factory):
    """Waterbirds in its published layout, all groups in all splits; nobody changes it."""
    return write_waterbirds(tmp_path_factory.mktemp("cub"))


@pytest.fixture(scope="session")
def faces(tmp_path_factory):
    """CelebA in its published layout; nobody changes it."""
    return write_celeba(tmp_path_factory.mktemp("celebA"))


@pytest.fixture(scope="session")
def slices(tmp_path_factory):
    """COVID CT as one list; nobody changes it."""
    return write_covid_list(tmp_path_factory.mktemp("covid"))


@pytest.fixture(scope="session")
def sites(tmp_path_factory):
    """COVID CT as three site folders; nobody changes it."""
    return write_covid_sites(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def expt(in_process):
    """Run ``run_expt.py`` in this process, in an empty folder, without the pictures of its report."""

    def start(*words):
        return in_process(run_undrawn, [str(word) for word in words])

    return start
