"""A method composed of two papers' ideas trains, and its loss has the terms of both."""

from __future__ import annotations

import json

import pytest
from benchmarks.compose import anc_in_part
from runs import undrawn


def test_contrast_in_the_budget_of_part_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("robust_core.session.write_report", undrawn)
    run = tmp_path / "run"
    assert anc_in_part.main(["--run-dir", str(run), "--images", "64"]) == 0
    assert "exclusion_loss" in capsys.readouterr().out
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    assert len(steps) == 2
    for line in steps:
        terms = line["natural_loss"] + 6 * line["robust_loss"] + 3 * line["exclusion_loss"]
        assert line["loss"] == pytest.approx(terms, rel=1e-5)
        assert 0 < line["mask_density"] < 1
    assert any(line["exclusion_loss"] > 0 for line in steps)
    assert (run / "finished.json").exists()
