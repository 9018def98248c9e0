"""Controls: as many full pixels, elsewhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from part.controls import MASK_CONTROLS, controlled_mask, inverted, random_places, shifted, uniform_budget
from part.mask import MASK_RULES, budget, density, make_mask, mask_scores
from robust_core.errors import UserError

MOVING = ("random", "shifted", "inverted")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_of(mask: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return torch.rand(mask.shape, generator=generator(seed))


def mask_and_scores(rule: str, n: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    maps = torch.rand(n, 4, 4, generator=generator(seed))
    maps[0] = 0.0
    return make_mask(maps, 16, rule), mask_scores(maps, 16, rule)


def counts(mask: torch.Tensor) -> torch.Tensor:
    return mask.flatten(2).sum(dim=2)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(MASK_RULES), st.sampled_from(MOVING), st.integers(0, 2**31))
def test_each_image_and_channel_keeps_its_number_of_full_pixels(rule, control, seed):
    mask, scores = mask_and_scores(rule, seed=seed)
    changed = controlled_mask(mask, scores, control, draw=draw_of(mask, seed))
    assert changed.dtype == torch.bool
    assert changed.shape == mask.shape
    assert torch.equal(counts(changed), counts(mask))
    assert torch.equal(density(changed), density(mask))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4))
def test_inverted_takes_the_lowest_scores_even_with_ties(seed, values):
    scores = torch.randint(0, values, (3, 2, 5, 7), generator=generator(seed)).float()
    mask = torch.rand(3, 2, 5, 7, generator=generator(seed + 1)) < 0.3
    low = inverted(mask, scores)
    assert torch.equal(counts(low), counts(mask))
    highest_in = torch.where(low, scores, -1.0).flatten(2).amax(dim=2)
    lowest_out = torch.where(low, float(values), scores).flatten(2).amin(dim=2)
    assert torch.all(highest_in <= lowest_out)


def test_inverted_leaves_the_hot_pixels():
    mask, scores = mask_and_scores("cam")
    assert not (inverted(mask, scores) & mask).any()


def test_random_places_are_uniform_and_those_of_the_draw():
    mask = torch.zeros(4000, 1, 4, 4, dtype=torch.bool)
    mask[:, :, 0] = True
    changed = controlled_mask(mask, mask.float(), "random", draw=draw_of(mask, 1))
    often = changed.float().mean(dim=0)
    assert torch.all((often - 0.25).abs() < 0.04)
    assert not torch.equal(changed, controlled_mask(mask, mask.float(), "random", draw=draw_of(mask, 2)))


def test_rows_of_a_global_draw_give_the_rows_of_the_global_masks():
    mask, scores = mask_and_scores("jet")
    draw = draw_of(mask, 3)
    by_draw = controlled_mask(mask, scores, "random", draw=draw)
    assert torch.equal(by_draw, random_places(mask, draw))
    assert torch.equal(random_places(mask[2:4], draw[2:4]), by_draw[2:4])


def test_shifted_rolls_by_half_the_image():
    mask = torch.zeros(1, 1, 4, 6, dtype=torch.bool)
    mask[0, 0, 0, 1] = True
    assert shifted(mask).nonzero().tolist() == [[0, 0, 2, 4]]
    assert torch.equal(shifted(shifted(mask)), mask)


def test_none_and_uniform_keep_the_mask():
    mask, scores = mask_and_scores("jet")
    for control in ("none", "uniform"):
        assert torch.equal(controlled_mask(mask, scores, control), mask)
    assert set(MASK_CONTROLS) == {"none", "uniform", *MOVING}


@pytest.mark.parametrize("rule", MASK_RULES)
def test_uniform_spends_what_the_image_had(rule):
    mask, _ = mask_and_scores(rule)
    own = budget(mask, eps=0.5, low_eps=0.25, dtype=torch.float64).mean(dim=(1, 2, 3), keepdim=True)
    mean = uniform_budget(mask, eps=0.5, low_eps=0.25, dtype=torch.float64)
    assert mean.shape == (6, 1, 1, 1)
    torch.testing.assert_close(mean, own, rtol=0, atol=1e-7)
    assert uniform_budget(mask, eps=0.5, low_eps=0.25).dtype == torch.float32


def test_the_given_mask_stays_as_it_is():
    mask, scores = mask_and_scores("cam")
    before = mask.clone()
    for control in MASK_CONTROLS:
        controlled_mask(mask, scores, control, draw=draw_of(mask))
    assert torch.equal(mask, before)


def test_mistakes_are_refused():
    mask, scores = mask_and_scores("cam")
    with pytest.raises(UserError, match="did you mean 'shifted'"):
        controlled_mask(mask, scores, "shift")
    with pytest.raises(UserError, match="give it a draw"):
        controlled_mask(mask, scores, "random")
    with pytest.raises(UserError, match="expected the mask's"):
        inverted(mask, scores[:2])
    with pytest.raises(UserError, match="larger than epsilon"):
        uniform_budget(mask, eps=0.1, low_eps=0.2)
