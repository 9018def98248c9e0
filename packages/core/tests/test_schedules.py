"""Rates as functions of the step."""

from __future__ import annotations

import pytest

from robust_core.training import Rate, step_rate


def test_milestones():
    rates = [step_rate(epoch, lr=0.01, milestones=(60, 90)) for epoch in (1, 59, 60, 89, 90, 120)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])


def test_the_latest_milestone_in_the_sequence_counts():
    assert [step_rate(epoch, lr=1.0, milestones=(5, 3)) for epoch in (2, 3, 5)] == [1.0, 0.01, 0.01]
    rates = [step_rate(epoch, lr=1.0, milestones=(75, 90, 100)) for epoch in (74, 75, 90, 100, 120)]
    assert rates == [1.0, 0.1, 0.01, 0.001, 0.001]


def test_step_rate_counts_from_the_offset():
    rate = Rate("step", 1.0, (3, 5), epoch_offset=1)
    assert [rate.at(step, 8, 2) for step in range(8)] == [1.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]


def test_linear_rate_falls_to_zero():
    rate = Rate("linear", 1.0)
    assert [rate.at(step, 4, 2) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_constant_rate():
    assert Rate("constant", 0.3).at(99, 100, 7) == 0.3


def test_a_linear_rate_goes_on_over_two_phases():
    whole = [Rate("linear", 0.3).at(step, 9, 1) for step in range(9)]
    first = [Rate("linear", 0.3, ramp=(1.0, 1 / 3)).at(step, 6, 1) for step in range(6)]
    second = [Rate("linear", 0.3, ramp=(1 / 3, 0.0)).at(step, 3, 1) for step in range(3)]
    assert [*first, *second] == pytest.approx(whole)
