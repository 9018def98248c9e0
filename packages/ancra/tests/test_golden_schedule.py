"""The learning rate of the six published scripts."""

from __future__ import annotations

import golden
import pytest

from ancra.methods import MILESTONES
from robust_core.training import step_rate

pytestmark = pytest.mark.golden


def test_every_stored_epoch():
    hyper = golden.load_json("ancra", "hyper.json")
    assert len(hyper["lr"]) == 6
    for script, rates in hyper["lr"].items():
        for epoch, rate in rates.items():
            ours = step_rate(int(epoch), lr=hyper["scripts"][script]["lr"], milestones=MILESTONES)
            assert ours == pytest.approx(rate, rel=1e-12)
