"""Differences of methods are those on the same test images; the others are left out by name."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.reproduce.papers import PAPERS
from benchmarks.reproduce.results import Entry, ResultFile, packed
from benchmarks.reproduce.tables import difference_table

PAPER = PAPERS["part"]


def entry(row: str, seed: int, share: float, images: int = 400, test: str = "x") -> Entry:
    record = {name: packed(np.arange(images) < share * images) for name in ("natural", "pgd-20")}
    return Entry(
        row=row, seed=seed, settings={}, images=images, record=record, summary={}, machine={}, software={},
        data={"train": {"images": 1}, "test": {"sha256": test}}, commit="c", train_seconds=1.0,
    )  # fmt: skip


@pytest.fixture
def results(tmp_path):
    found = ResultFile(tmp_path / "results.json", "part", "demo")
    found.entries = [
        entry(row, seed, share) for row, share in (("at", 0.5), ("part", 0.6)) for seed in (1, 2)
    ]
    return found


def test_pairs_on_the_same_images_are_all_there(results):
    table = difference_table(PAPER, results, PAPER.at("demo"))
    assert [(row[0], row[1], row[-1]) for row in table.rows] == [("PART", "+10.00 [+10.00, +10.00]", "2")]
    assert "left out" not in " ".join(table.notes)


@pytest.mark.parametrize("other", [{"test": "y"}, {"images": 200}])
def test_results_on_other_images_are_left_out_by_name(results, other):
    results.entries[3] = entry("part", 2, 0.6, **other)
    table = difference_table(PAPER, results, PAPER.at("demo"))
    assert table.rows[0][-1] == "1"
    assert table.notes[-1] == "Left out: PART, seed 2: other test images."
    results.entries[2] = entry("part", 1, 0.6, **other)
    table = difference_table(PAPER, results, PAPER.at("demo"))
    assert table.rows == ()
    assert table.notes == ("Left out: PART, seed 1; PART, seed 2: other test images.",)
    assert "Left out" in table.text()
    assert "Left out" in table.markdown()
