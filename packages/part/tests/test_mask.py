"""The two mask rules and the budget made from a mask."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from part.colormap import NAN_INDEX, jet_index, jet_lut
from part.mask import (
    MASK_RULES,
    budget,
    cam_mask,
    density,
    jet_mask,
    jet_scores,
    jet_weights,
    make_mask,
    mask_scores,
    z_scores,
)
from part.resize import resize
from robust_core.errors import UserError

FULL, LOW = 8 / 255, 7 / 255


def random_maps(n: int, side: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, side, side, generator=torch.Generator().manual_seed(seed))


def jet_mask_by_the_text(heatmap: np.ndarray, size: int) -> np.ndarray:
    """Steps 1 to 6 of the published pipeline for one map, word for word."""
    v = resize(torch.from_numpy(heatmap)[None], size)[0].numpy() ** 2
    colours = np.zeros((size, size, 3))
    lut = jet_lut().numpy()
    known = ~np.isnan(v)
    colours[known] = lut[np.minimum(np.floor(np.float32(256) * v[known]), 255).astype(int)]
    w = (colours - colours.mean()) / colours.std()
    w = np.minimum(np.maximum(w, 1), w.max()).astype(np.float32)
    return np.moveaxis(w > 1, 2, 0)


def test_the_colour_map_is_jet():
    np.testing.assert_allclose(
        jet_lut().numpy(), mpl.colormaps["jet"](np.arange(256))[:, :3], atol=1e-12, rtol=0
    )


def test_indices_at_the_ends_and_for_nan():
    heat = torch.tensor([0.0, 1 / 256, 0.99999, 1.0, 1.7, float("inf"), float("nan")])
    assert jet_index(heat).tolist() == [0, 1, 255, 255, 255, 255, NAN_INDEX]


@pytest.mark.parametrize(("side", "size"), [(4, 32), (8, 32), (8, 64), (2, 8)])
def test_jet_mask_equals_its_text(side, size):
    maps = random_maps(6, side, seed=side + size)
    masks = jet_mask(maps, size)
    assert masks.dtype == torch.bool
    assert masks.shape == (6, 3, size, size)
    for one, mask in zip(maps.numpy(), masks.numpy(), strict=True):
        np.testing.assert_array_equal(mask, jet_mask_by_the_text(one, size))


def test_jet_mask_weights_and_scores_agree():
    maps = torch.cat([random_maps(20), torch.ones(1, 4, 4), torch.zeros(1, 4, 4)])
    mask = jet_mask(maps, 32)
    assert torch.equal(jet_weights(maps, 32) > 1, mask)
    assert torch.equal(jet_scores(maps, 32) > 1, mask)


def test_a_map_of_nan_is_low_everywhere():
    maps = torch.full((2, 4, 4), float("nan"))
    for rule in MASK_RULES:
        assert not make_mask(maps, 32, rule).any()
        assert torch.equal(
            mask_scores(maps, 32, rule), torch.zeros_like(make_mask(maps, 32, rule), dtype=torch.float32)
        )
    assert jet_weights(maps, 32).isnan().all()


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0, 1e6, 1e-20])
def test_a_constant_map_is_low_everywhere(value):
    maps = torch.full((2, 4, 4), value)
    assert not cam_mask(maps, 32).any()
    assert not z_scores(maps, 32).any()


def test_the_jet_rule_takes_a_constant_map_as_the_published_normalisation_does():
    maps = torch.cat([torch.zeros(1, 4, 4), torch.ones(1, 4, 4), random_maps(1)])
    assert density(make_mask(maps, 32, "jet"))[:2].tolist() == [0.0, 0.0]
    assert torch.equal(make_mask(maps, 32, "jet")[2:], jet_mask(maps[2:], 32))
    assert torch.equal(mask_scores(maps, 32, "jet") > 1, make_mask(maps, 32, "jet"))


def test_a_constant_map_beside_others_changes_none():
    maps = random_maps(4)
    mixed = torch.cat([maps, torch.zeros(1, 4, 4), torch.full((1, 4, 4), float("nan"))])
    for rule in MASK_RULES:
        assert torch.equal(make_mask(mixed, 32, rule)[:4], make_mask(maps, 32, rule))


def test_cam_mask_equals_its_formula():
    maps = random_maps(8, 8)
    v = resize(maps, (32, 48)).double().numpy()
    z = (v - v.mean(axis=(1, 2), keepdims=True)) / v.std(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(z_scores(maps, (32, 48))[:, 0].numpy(), z, atol=1e-6, rtol=0)
    mask = cam_mask(maps, (32, 48))
    assert mask.dtype == torch.bool
    assert mask.shape == (8, 1, 32, 48)
    np.testing.assert_array_equal(mask[:, 0].numpy(), z.astype(np.float32) > 1)


def test_cam_mask_density_on_smooth_maps():
    # Heat as a class activation map has it: a bump or two, clipped at zero.
    generator = torch.Generator().manual_seed(0)
    heat = (torch.randn(500, 4, 4, generator=generator)).relu()
    assert 0.14 < float(density(cam_mask(heat, 32)).mean()) < 0.24


def test_cam_mask_is_where_the_map_is_hot():
    heat = torch.zeros(1, 4, 4)
    heat[0, 1, 2] = 1.0
    mask = cam_mask(heat, 32)[0, 0]
    assert mask[12, 20]
    assert not mask[:, :8].any()
    assert not mask[24:].any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 100), st.floats(-10, 10))
def test_cam_mask_knows_no_scale_and_no_offset(seed, scale, offset):
    maps = random_maps(3, seed=seed)
    # Scores, not masks: a pixel may lie on the threshold to rounding.
    rescaled = (maps.double() * scale + offset * scale).float()
    atol = 1e-6 * (1 + abs(offset)) * 100
    torch.testing.assert_close(z_scores(rescaled, 16), z_scores(maps, 16), rtol=0, atol=atol)


@pytest.mark.parametrize("rule", MASK_RULES)
def test_a_batch_equals_its_images_one_by_one(rule):
    maps = random_maps(7)
    alone = torch.cat([make_mask(one[None], 32, rule) for one in maps])
    assert torch.equal(make_mask(maps, 32, rule), alone)


@pytest.mark.parametrize("rule", MASK_RULES)
def test_float64_maps_are_taken_as_float32(rule):
    maps = random_maps(5).double()
    assert torch.equal(make_mask(maps, 32, rule), make_mask(maps.float(), 32, rule))


def test_an_unknown_rule_is_refused():
    for call in (make_mask, mask_scores):
        with pytest.raises(UserError, match="Unknown mask rule 'jett'"):
            call(random_maps(1), 32, "jett")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_budget_has_two_values(dtype):
    mask = cam_mask(random_maps(3), 32)
    values = budget(mask, eps=FULL, low_eps=LOW, dtype=dtype)
    assert values.dtype == dtype
    assert values.shape == mask.shape
    full, low = (torch.tensor(number, dtype=dtype) for number in (FULL, LOW))
    assert torch.equal(values[mask], full.expand(int(mask.sum())))
    assert torch.equal(values[~mask], low.expand(int((~mask).sum())))


@pytest.mark.parametrize(
    ("eps", "low_eps", "message"),
    [
        (-0.1, 0.0, "epsilon is -0.1"),
        (float("nan"), 0.0, "epsilon is nan"),
        (0.1, -0.1, "low-epsilon is -0.1"),
        (0.1, float("inf"), "low-epsilon is inf"),
        (7 / 255, 8 / 255, "larger than epsilon"),
    ],
)
def test_impossible_budgets_are_refused(eps, low_eps, message):
    with pytest.raises(UserError, match=message):
        budget(torch.zeros(1, 1, 2, 2, dtype=torch.bool), eps=eps, low_eps=low_eps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mask": torch.zeros(1, 1, 2, 2)},
            r"mask is torch\.float32, expected a tensor of torch\.bool: use mask >",
        ),
        ({"mask": np.zeros((1, 1, 2, 2), dtype=bool)}, "mask is ndarray, expected a tensor"),
        ({"eps": "8/255"}, "epsilon is '8/255'; expected a finite number"),
        ({"low_eps": None}, "low-epsilon is None; expected a finite number"),
    ],
)
def test_a_budget_of_no_mask_or_no_number_is_refused(changes, message):
    arguments = {"mask": torch.zeros(1, 1, 2, 2, dtype=torch.bool), "eps": FULL, "low_eps": LOW} | changes
    with pytest.raises(UserError, match=message):
        budget(**arguments)


def test_a_budget_of_numpy_numbers():
    mask = torch.tensor([[[[True, False]]]])
    assert budget(mask, eps=np.float32(0.5), low_eps=np.float64(0.25)).flatten().tolist() == [0.5, 0.25]


@pytest.mark.parametrize("make", [cam_mask, jet_mask, z_scores, jet_scores, jet_weights, *MASK_RULES])
@pytest.mark.parametrize(
    ("maps", "size", "message"),
    [
        (
            torch.rand(4, 4),
            32,
            r"maps have shape \(4, 4\), expected \(N, h, w\): give one map as maps\[None\]",
        ),
        (torch.rand(2, 1, 4, 4), 32, r"maps have shape \(2, 1, 4, 4\), .*leave out a channel axis"),
        (np.zeros((2, 4, 4)), 32, r"maps are ndarray, .*torch\.from_numpy"),
        (torch.rand(2, 4, 4), 32.0, r"size is 32\.0, expected a whole number or \(H, W\)"),
        (torch.rand(2, 4, 4), "32", "size is '32', expected a whole number"),
    ],
)
def test_what_is_no_batch_of_maps_or_no_size_is_refused(make, maps, size, message):
    with pytest.raises(UserError, match=message):
        make_mask(maps, size, make) if isinstance(make, str) else make(maps, size)


def test_density_is_per_image():
    mask = torch.zeros(3, 2, 4, 4, dtype=torch.bool)
    mask[1, 0] = True
    mask[2] = True
    assert density(mask).tolist() == [0.0, 0.5, 1.0]
