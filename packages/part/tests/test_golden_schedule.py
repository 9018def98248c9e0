"""The learning rate of the published schedule."""

from __future__ import annotations

import golden
import pytest

from robust_core.training.schedules import step_rate

pytestmark = pytest.mark.golden


def test_every_stored_epoch():
    schedules = [entry for entry in golden.load_json("part", "lr.json").values() if isinstance(entry, dict)]
    assert schedules
    for schedule in schedules:
        milestones = (schedule["adjust_first"], schedule["adjust_second"])
        for epoch, rate in schedule["table"].items():
            ours = step_rate(int(epoch), lr=schedule["lr"], milestones=milestones)
            assert ours == pytest.approx(rate, rel=1e-12)
