"""Masks against the official arrays: from given heat maps, and from our own class activation maps."""

from __future__ import annotations

import functools

import golden
import numpy as np
import pytest
import torch

from part.colormap import jet_lut
from part.mask import budget, jet_mask, jet_weights, make_mask
from part.resize import resize, resize_matrix
from robust_core.cam import cam_of_features, normalize_map
from robust_core.models import frozen

pytestmark = pytest.mark.golden

NETWORKS = ("resnet18", "wrn34_10")
METHODS = ("gradcam", "xgradcam", "layercam")


def few(network: str, method: str, dtype: torch.dtype) -> int:
    """Elements of 3072 whose score may lie on the threshold to the rounding of our own heat map."""
    # XGrad-CAM's denominator nearly cancels there.
    return 60 if (network, method, dtype) == ("wrn34_10", "xgradcam", torch.float32) else 6


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy())


def test_the_colour_map():
    np.testing.assert_allclose(
        jet_lut().numpy(), golden.load("part", "pipeline.npz")["jet_lut"], atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("side", [4, 8])
def test_the_resize_matrix(side):
    expected = golden.load("part", "pipeline.npz")[f"resize_matrix_{side}"]
    matrix = resize_matrix(side, expected.shape[0])
    assert matrix.dtype == torch.float32
    np.testing.assert_allclose(matrix.numpy(), expected, atol=6e-8, rtol=0)


@pytest.mark.parametrize("kind", ["h4", "h8", "special"])
def test_the_pipeline_on_given_heat_maps(kind):
    arrays = golden.load("part", "pipeline.npz")
    heatmaps, high = tensor(arrays[f"{kind}_heatmap"]), arrays[f"{kind}_eps_high"]
    size = high.shape[-1]
    np.testing.assert_allclose(resize(heatmaps, size).numpy(), arrays[f"{kind}_resized"], atol=1e-6, rtol=0)
    np.testing.assert_allclose(
        jet_weights(heatmaps, size).numpy(), arrays[f"{kind}_weight_f32"], atol=1e-6, rtol=0
    )
    mask = jet_mask(heatmaps, size)
    np.testing.assert_array_equal(mask.numpy(), high)
    inputs = golden.load("part", "inputs.npz")
    values = budget(mask, eps=float(inputs["epsilon"]), low_eps=float(inputs["low_epsilon"]))
    np.testing.assert_array_equal(values[:, :, :2, :2].numpy(), arrays[f"{kind}_eps"])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_masks_of_the_stored_heat_maps(network, method):
    arrays, name = golden.load("part", "cam.npz"), f"{network}_{method}"
    high, heatmaps = arrays[f"{name}_eps_high"], tensor(arrays[f"{name}_heatmap_f32"])
    size = high.shape[-1]
    np.testing.assert_array_equal(jet_mask(heatmaps, size).numpy(), high)
    np.testing.assert_array_equal(make_mask(heatmaps, size, "jet").numpy(), high)
    np.testing.assert_allclose(
        jet_weights(heatmaps, size).numpy(), arrays[f"{name}_weight_f32"], atol=1e-6, rtol=0
    )
    from_float64 = jet_mask(tensor(arrays[f"{name}_heatmap_f64"]), size).numpy()
    np.testing.assert_array_equal(
        (from_float64 != high).sum(axis=(1, 2, 3)), arrays[f"{name}_eps_high_diff_f32_f64"]
    )


@functools.cache
def features_and_logits(
    network: str, dtype: torch.dtype
) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    view = frozen(golden.recipe_model(network, dtype))
    with torch.no_grad():
        logits, features = view.logits_and_features(tensor(golden.load("part", "inputs.npz")["x"]).to(dtype))
    return view, features, logits


@pytest.mark.parametrize(
    ("network", "dtype"), golden.in_both_precisions(NETWORKS, (torch.float64, torch.float32))
)
def test_masks_of_our_own_maps(network, dtype):
    arrays = golden.load("part", "cam.npz")
    view, features, logits = features_and_logits(network, dtype)
    for method in METHODS:
        name = f"{network}_{method}"
        heatmaps = normalize_map(cam_of_features(view, features, logits, method=method))
        high, drift = arrays[f"{name}_eps_high"], arrays[f"{name}_eps_high_diff_f32_f64"]
        mask = make_mask(heatmaps, high.shape[-1], "jet").numpy()
        if dtype == torch.float64:
            expected = tensor(arrays[f"{name}_heatmap_f64"])
            high = make_mask(expected, high.shape[-1], "jet").numpy()
            drift = np.zeros_like(drift)
        different = (mask != high).sum(axis=(1, 2, 3))
        assert np.all(different <= drift + few(network, method, dtype)), (name, different, drift)
