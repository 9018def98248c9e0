"""Saliency against the official maps: published definitions exactly, the plain Grad-CAM where both agree."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from grfal_golden import close, filled, images_of, load, normal_noise

from gdro_at.networks import build_network
from gdro_at.published_saliency import (
    published_attack_saliency,
    published_jet,
    published_natural_cam,
    published_natural_cam_pp,
    published_overlay,
)
from gdro_at.saliency import grad_cam
from robust_core.attacks import objectives
from robust_core.attacks.engine import ascend, natural_logits
from robust_core.models import FrozenView

pytestmark = pytest.mark.golden

FILE = "gradcam.npz"
MAP_STRIDE, OVERLAY_STRIDE = 5, 4
ROBUST = 1e-8
NATURAL = {"f64": 1e-10, "f32": 2e-3}
PLUS_PLUS = {"f64": 1e-10, "f32": 5e-2}


@pytest.fixture(scope="module")
def arrays():
    return load(FILE)


def network(suffix):
    arrays = load(FILE)
    size = arrays["x_base"].shape[-1] * int(arrays["x_factor"])
    model = build_network("resnet18", len(arrays["head_bias"]), image_size=size, mean=None, std=None, seed=0)
    return filled(model, arrays, suffix)


def classes_of(arrays):
    return torch.from_numpy(arrays["class_idx"].astype(np.int64))


@functools.cache
def attacked():
    """Return the images, the attacked images and the objective (sum over one image) before each step."""
    arrays = load(FILE)
    images = images_of(arrays, "f64")
    view = FrozenView(network("f64"))
    divergence = objectives.kl_to(natural_logits(view, images))
    losses = []

    def told(logits, labels):
        losses.append(divergence(logits, labels).detach())
        return divergence(logits, labels)

    adversarial = ascend(
        view,
        images,
        classes_of(arrays),
        start=images + 0.0001 * normal_noise(arrays["noise_normal"], "f64"),
        eps=float(arrays["eps"]),
        step_size=float(arrays["step"]),
        steps=int(arrays["iters"]),
        objective=told,
    )
    return images, adversarial.contiguous(), torch.stack(losses, dim=1)


def robust(number, layer):
    """Return the official robust saliency of one image on a fresh network, and that network."""
    images, adversarial, _ = attacked()
    model = network("f64")
    one = slice(number, number + 1)
    return published_attack_saliency(model, images[one], adversarial[one], layer), model


def strided(maps, reference):
    """Return the elements that the file keeps."""
    same = maps.shape == reference.shape
    return maps if same else maps[..., ::MAP_STRIDE, ::MAP_STRIDE]


def test_the_attack(arrays):
    images, adversarial, losses = attacked()
    assert np.abs((adversarial - images).numpy() - arrays["delta"]).max() < 2e-9
    close(losses, arrays["f64__attack_losses"], 1e-10)


def robust_layers():
    return [name for name in load(FILE)["layers"] if f"f64__{name}__cam1_raw" in load(FILE)]


@pytest.mark.parametrize("layer", robust_layers())
def test_robust_saliency(arrays, layer):
    for number in range(len(arrays["class_idx"])):
        found, model = robust(number, str(layer))
        assert abs(float(found.scores) - arrays["f64__kl"][number]) < 1e-13
        assert int(found.predictions) == arrays["f64__pred"][number]
        assert model.training == bool(arrays["train_mode_after"][number])
        for statistic in ("running_mean", "running_var"):
            moved = getattr(model.bn1, statistic)
            close(moved, arrays[f"f64__bn1_{statistic}_after"][number], 1e-10)
        for name, value in (("alpha", found.weights), ("raw", found.raw), ("map", found.maps)):
            reference = arrays[f"f64__{layer}__cam1_{name}"][number]
            close(strided(value[0], reference), reference, ROBUST)


def test_the_evaluation_mode_prediction(arrays):
    with torch.no_grad():
        found = network("f64")(images_of(arrays, "f64")).argmax(dim=1)
    assert np.array_equal(found.numpy(), arrays["pred_eval"])


@pytest.mark.parametrize("suffix", ["f64", "f32"])
def test_natural_saliency(arrays, suffix):
    model, images, classes = network(suffix), images_of(arrays, suffix), classes_of(arrays)
    for layer in map(str, arrays["layers"]):
        maps, weights = published_natural_cam(model, images, classes, layer)
        reference = arrays[f"{suffix}__{layer}__cam2_map"]
        close(weights, arrays[f"{suffix}__{layer}__cam2_alpha"], NATURAL[suffix])
        close(strided(maps, reference), reference, NATURAL[suffix])
        plain = grad_cam(model, images, classes, layer)
        close(plain.weights, arrays[f"{suffix}__{layer}__cam2_alpha"], NATURAL[suffix])
        # where the official map is NaN the plain one is zero
        close(strided(plain.maps, reference), np.nan_to_num(reference), NATURAL[suffix])


def test_natural_saliency_after_the_robust_one(arrays):
    images, _, _ = attacked()
    for number, reference in enumerate(arrays["f64__cam2_after_cam1_map"]):
        _, model = robust(number, "layer1")
        one = slice(number, number + 1)
        maps, _ = published_natural_cam(model, images[one], classes_of(arrays)[one], "layer1")
        close(strided(maps[0], reference), reference, ROBUST)


@pytest.mark.parametrize("suffix", ["f64", "f32"])
def test_grad_cam_plus_plus(arrays, suffix):
    model, images, classes = network(suffix), images_of(arrays, suffix), classes_of(arrays)
    for layer in map(str, arrays["layers"]):
        reference = arrays[f"{suffix}__{layer}__campp_map_strided"]
        maps = published_natural_cam_pp(model, images, classes, layer)
        close(maps[:, ::7, ::7], reference, PLUS_PLUS[suffix])


def test_overlay(arrays):
    mask = torch.from_numpy(arrays["overlay_mask"])
    image = images_of(arrays, "f32")[:1]
    heat, picture = published_overlay(mask[None], image)
    assert np.array_equal(published_jet().numpy(), arrays["jet_lut_rgb"])
    assert np.array_equal(heat[0].numpy(), arrays["overlay_heatmap_u8"])
    close(picture[0, :, ::OVERLAY_STRIDE, ::OVERLAY_STRIDE], arrays["overlay_result"], 1e-6)
    largest = (heat.float() / 255 + image).max()
    close(largest, arrays["overlay_result_max"], 1e-6)


def test_the_overlay_mask_is_the_natural_map(arrays):
    images, classes = images_of(arrays, "f64"), classes_of(arrays)
    maps, _ = published_natural_cam(network("f64"), images, classes, "layer2")
    close(maps[0], arrays["overlay_mask"], NATURAL["f32"])
