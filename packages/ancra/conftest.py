"""Keeps pytest off a script that is named like a test."""

from __future__ import annotations

collect_ignore = ["test_white_attack.py"]
