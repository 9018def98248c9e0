"""Means over units of the global batch, and the loss that they make."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gdro_at.units
from gdro_at.units import unit_means, unit_totals, weighted_sum
from robust_core.randomness import generator_for
from robust_core.training import Processes


def batch(size, count, seed=0):
    generator = generator_for(seed, "units")
    values = [torch.rand(size, generator=generator, dtype=torch.float64) for _ in range(2)]
    return values, torch.randint(count, (size,), generator=generator)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 99))
def test_means_by_hand(size, count, seed):
    values, units = batch(size, count, seed)
    for value, means in zip(values, unit_means(values, units, count), strict=True):
        for unit in range(count):
            members = [float(v) for v, u in zip(value, units, strict=True) if u == unit]
            assert float(means.counts[unit]) == len(members)
            wanted = sum(members) / len(members) if members else 0.0
            assert float(means.means[unit]) == pytest.approx(wanted, abs=1e-14)


def test_one_unit_spoiled_spoils_no_other():
    value = torch.tensor([1.0, math.inf, 3.0, math.nan])
    means = unit_means([value], torch.tensor([0, 1, 0, 2]), 4)[0].means
    assert means[0] == 2
    assert means[1] == math.inf
    assert means[2].isnan()
    assert means[3] == 0


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_totals_are_detached_and_at_least_float32(given_dtype, dtype):
    value = torch.ones(4, dtype=given_dtype, requires_grad=True)
    sums, counts = unit_totals([value], torch.tensor([0, 0, 1, 1]), 2)
    assert sums.dtype == counts.dtype == dtype
    assert not sums.requires_grad
    assert sums.tolist() == [[2, 2]]


def test_weighted_sum_is_the_weighted_mean_of_means_with_gradient_through_values_only():
    (value, _), units = batch(9, 4)
    value.requires_grad_()
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64, requires_grad=True)
    means, counts = unit_means([value], units, 4)[0]
    loss = weighted_sum(value, units, weights, counts)
    assert float(loss.detach()) == pytest.approx(float((weights.detach() * means).sum()), rel=1e-14)
    loss.backward()
    assert weights.grad is None
    torch.testing.assert_close(value.grad, weights.detach()[units] / counts[units])


def test_two_processes_add_up_in_one_message(monkeypatch):
    values, units = batch(11, 5)
    parts = [(slice(0, 4)), slice(4, 11)]
    local = [unit_totals([v[rows] for v in values], units[rows], 5) for rows in parts]
    messages = []

    def all_reduce(tensor):
        messages.append(tuple(tensor.shape))
        sums, counts = local[1]
        tensor.add_(torch.cat([sums, counts[None]]))

    monkeypatch.setattr(gdro_at.units.dist, "all_reduce", all_reduce)
    first = unit_means([v[parts[0]] for v in values], units[parts[0]], 5, Processes(0, 2))
    assert messages == [(3, 5)]
    whole = unit_means(values, units, 5, Processes())
    assert messages == [(3, 5)]
    for one, other in zip(first, whole, strict=True):
        torch.testing.assert_close(one.means, other.means, rtol=1e-14, atol=0)
        assert torch.equal(one.counts, other.counts)
    weights = torch.full((5,), 0.2, dtype=torch.float64)
    pieces = [weighted_sum(values[0][rows], units[rows], weights, whole[0].counts) for rows in parts]
    torch.testing.assert_close(sum(pieces), (weights * whole[0].means).sum())
