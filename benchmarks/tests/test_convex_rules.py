"""The convex benchmark's weights (numpy) are the package's (torch)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks.convex.descent import Column, ColumnWeights
from benchmarks.convex.problem import WeightSet
from benchmarks.convex.weights import RULES, Bounds, projected

from gdro_at.units import UnitMeans
from gdro_at.weights import OFFICIAL_AXES, GroupRule, RuleState, kl_projection, step

K, ETA = 4, 0.1
BOUNDS = Bounds.around_uniform(K, 0.2)


def test_projections_agree():
    for point in np.random.default_rng(0).dirichlet(np.ones(K), 20):
        ours = kl_projection(torch.from_numpy(point).log(), BOUNDS.low, BOUNDS.high)
        assert np.allclose(ours.numpy(), projected(point, BOUNDS), atol=1e-12)


@pytest.mark.parametrize("name", ["corrected", "official"])
def test_ten_steps_agree(name):
    rng = np.random.default_rng(1)
    official = name == "official"
    rule = GroupRule(
        training_counts=(1.0,) * K,
        robust_step_size=ETA,
        train_grad=official,
        limit_nat=True,
        limit_adv=True,
        **(OFFICIAL_AXES if official else {}),
    )
    state = RuleState.start(rule, torch.float64)
    (theirs,) = (entry for entry in RULES if entry.name == name)
    weights = ColumnWeights([Column(theirs, WeightSet("bounded", BOUNDS), 0.1, ETA)])
    q = p = np.full((1, 1, K), 1 / K)  # one seed, one column
    seen = []
    for _ in range(10):
        natural, adversarial = rng.uniform(0, 1, K), rng.uniform(0, 1, K)
        seen.append(natural)
        counts = torch.ones(K, dtype=torch.float64)
        state = step(
            rule, state, *(UnitMeans(torch.from_numpy(losses), counts) for losses in (natural, adversarial))
        ).state
        q, p = weights.step(q, p, (natural, adversarial), np.mean(seen, axis=0))
    assert np.allclose(state.natural_weights.numpy(), q[0, 0], atol=1e-12)
    assert np.allclose(state.adversarial_weights.numpy(), p[0, 0], atol=1e-12)
    assert rule.adversarial_factor == theirs.factor(K)
