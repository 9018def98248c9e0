"""Fixtures of the benchmarks' tests."""

from __future__ import annotations

from script_fixtures import folders

__all__ = ["folders"]
