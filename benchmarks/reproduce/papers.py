"""The papers that can be reproduced, by name."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.reproduce import part
from benchmarks.reproduce.rows import Paper

__all__ = ["PAPERS"]

PAPERS: Mapping[str, Paper] = {"part": part.PAPER}
