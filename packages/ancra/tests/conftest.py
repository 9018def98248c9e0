"""Fixtures of ANCRA's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from script_fixtures import environment, folders, in_process, script

__all__ = ["environment", "folders", "in_process", "script"]


@pytest.fixture(scope="session")
def package():
    """Where ANCRA's scripts lie."""
    return Path(__file__).parents[1]
