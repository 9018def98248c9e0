"""Fixtures of PART's tests."""

from __future__ import annotations

import pytest
from script_fixtures import environment, folders, in_process, script
from scripts import PACKAGE

__all__ = ["environment", "folders", "in_process", "script"]


@pytest.fixture(scope="session")
def package():
    """Where PART's scripts lie."""
    return PACKAGE
