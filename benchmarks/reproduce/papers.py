"""The papers that can be reproduced, by name."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.reproduce import ancra, gdro_at, part
from benchmarks.reproduce.rows import Paper

__all__ = ["PAPERS", "tables_of"]

PAPERS: Mapping[str, Paper] = {"part": part.PAPER, **ancra.PAPERS, **gdro_at.PAPERS}
"""Each table of a paper by its name; further ones of a paper have the paper's name and a dash before their own."""


def tables_of(name: str, scale: str) -> list[Paper]:
    """Return the tables of a paper, of one by its own name, or of ``all``, that have rows to run at a scale."""
    chosen = [paper for key, paper in PAPERS.items() if name in ("all", key) or key.startswith(f"{name}-")]
    return [paper for paper in chosen if paper.at(scale)]
