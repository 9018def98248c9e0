"""Intervals against known values, against scipy, and against how often they cover the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from robust_core.errors import UserError
from robust_core.evaluation import (
    bootstrap_minimum,
    enough_images,
    holm,
    paired_difference,
    paired_worst,
    t_interval,
    wilson,
    worst_group,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (1, 3), (481, 1000), (9999, 10000)])
def test_wilson_equals_scipy(successes, n):
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    found = wilson(successes, n)
    assert found == pytest.approx((successes / n, expected.low, expected.high), abs=1e-12)


def test_wilson_at_the_borders_is_exact_and_has_a_width():
    assert wilson(0, 10).low == 0.0 < wilson(0, 10).high
    assert wilson(10, 10).low < wilson(10, 10).high == 1.0


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_proportion(successes, n):
    with pytest.raises(UserError, match="no proportion"):
        wilson(successes, n)


def test_t_interval_equals_scipy():
    values = [0.47, 0.51, 0.49]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert t_interval(values) == pytest.approx((0.49, expected.low, expected.high))


def test_t_interval_of_one_seed_has_no_ends():
    interval = t_interval([0.4])
    assert interval.estimate == 0.4
    assert math.isnan(interval.low)
    assert interval.ends() is None
    with pytest.raises(UserError, match="No values"):
        t_interval([])


def _record(counts, successes):
    correct = np.concatenate([np.arange(n) < k for n, k in zip(counts, successes, strict=True)])
    return correct, np.repeat(np.arange(len(counts)), counts)


def test_bootstrap_minimum_finds_the_worst_group_and_ignores_empty_ones():
    correct, groups = _record([100, 0, 400, 200], [90, 0, 100, 150])
    interval = bootstrap_minimum(correct, groups)
    assert interval.estimate == 0.25
    # Here one group is far below the others, so its own interval is the answer.
    own = wilson(100, 400)
    assert interval.low == pytest.approx(own.low, abs=0.01)
    assert interval.high == pytest.approx(own.high, abs=0.01)


def test_bootstrap_minimum_is_seeded_and_has_a_width_at_zero():
    correct, groups = _record([200, 200], [0, 150])
    assert bootstrap_minimum(correct, groups, seed=3) == bootstrap_minimum(correct, groups, seed=3)
    interval = bootstrap_minimum(correct, groups)
    assert (interval.estimate, interval.low) == (0.0, 0.0)
    assert 0.005 < interval.high < 0.05


def test_bootstrap_minimum_covers_the_true_minimum_of_equal_classes():
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(10), 100)
    covered = percentile_covered = 0
    for trial in range(100):
        correct = rng.random(1000) < 0.5
        interval = bootstrap_minimum(correct, groups, draws=1000, seed=trial)
        covered += interval.low <= 0.5 <= interval.high
        shares = correct.reshape(10, 100).mean(axis=1)
        resampled = (rng.binomial(100, shares, size=(1000, 10)) / 100).min(axis=1)
        percentile_covered += np.quantile(resampled, 0.975) >= 0.5
    assert covered >= 70
    assert percentile_covered <= 10


def test_bootstrap_minimum_refuses_unequal_lengths_and_nothing():
    with pytest.raises(UserError, match="one length"):
        bootstrap_minimum([True, False], [0])
    with pytest.raises(UserError, match="No images"):
        bootstrap_minimum(np.zeros(0, dtype=bool), np.zeros(0, dtype=int))


def test_paired_worst_of_equal_methods_is_nothing_and_else_the_difference_of_worst_groups():
    rng = np.random.default_rng(0)
    groups, right = rng.integers(0, 3, 600), rng.random(600) < 0.7
    interval = paired_worst(right, right, groups)
    assert interval.estimate == 0
    assert -0.02 < interval.low <= 0 <= interval.high < 0.02
    first, groups = _record([100, 0, 400, 200], [90, 0, 100, 150])
    second, _ = _record([100, 0, 400, 200], [20, 0, 200, 150])
    assert (worst_group(first, groups), worst_group(second, groups)) == (0.25, 0.2)
    interval = paired_worst(first, second, groups)
    assert interval.estimate == pytest.approx(0.05)
    assert -0.1 < interval.low < 0.05 < interval.high < 0.2
    with pytest.raises(UserError, match="one length"):
        paired_worst(first, second[1:], groups)


def test_paired_difference_of_one_seed_is_over_images():
    first = np.arange(1000) < 520
    second = np.concatenate([np.arange(520) < 490, np.arange(480) < 10])
    found = paired_difference(first, second)
    assert found.over == "images"
    assert found.interval.estimate == pytest.approx(0.02)
    # The textbook interval of a paired difference: 30 against 10 discordant images.
    half = 1.96 * math.sqrt(40 / 1000 - 0.02**2) / math.sqrt(1000)
    assert found.interval.low == pytest.approx(0.02 - half, abs=0.002)
    assert found.interval.high == pytest.approx(0.02 + half, abs=0.002)
    assert found.p_value == pytest.approx(stats.binomtest(30, 40).pvalue)


def test_paired_difference_of_seeds_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    first = rng.random((4, 500)) < np.array([0.52, 0.55, 0.5, 0.53])[:, None]
    second = rng.random((4, 500)) < 0.48
    found = paired_difference(first, second)
    expected = stats.ttest_rel(first.mean(axis=1), second.mean(axis=1))
    ends = expected.confidence_interval(0.95)
    assert found.over == "seeds"
    assert len(found.per_seed) == 4
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.interval[1:] == pytest.approx((ends.low, ends.high))


def test_paired_difference_without_disagreement():
    same = np.arange(300) < 100
    found = paired_difference(same, same)
    assert found.p_value == 1.0
    assert found.interval.low < 0 < found.interval.high
    seeds = paired_difference(np.stack([same, same]), np.stack([same, same]))
    assert (seeds.p_value, seeds.interval.low, seeds.interval.high) == (1.0, 0.0, 0.0)


def test_paired_difference_is_antisymmetric_and_claims_nothing_below_200_images():
    rng = np.random.default_rng(1)
    first, second = rng.random((2, 199)) < 0.5
    forth, back = paired_difference(first, second), paired_difference(second, first)
    assert forth.interval.estimate == -back.interval.estimate
    assert not forth.claimable
    assert enough_images([200, 300])
    assert not enough_images([200, 199])


def test_paired_difference_refuses_other_images():
    with pytest.raises(UserError, match="cannot be paired"):
        paired_difference(np.zeros(3, dtype=bool), np.zeros(4, dtype=bool))


def test_holm_equals_the_textbook():
    assert holm([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
