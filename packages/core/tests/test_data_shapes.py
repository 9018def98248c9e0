"""The drawn sets: reproducible, balanced, of the promised contrast and grouping."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from robust_core.data import dataset_info, load_dataset
from robust_core.data.figures import FIGURES, signed_distance
from robust_core.data.shapes import CONTRAST, _colours, _Draw, draw_figures


@pytest.fixture(scope="module")
def shapes():
    return load_dataset("shapes", split="test")


@pytest.fixture(scope="module")
def grouped():
    return {split: load_dataset("shapes-grouped", split=split) for split in ("train", "validation", "test")}


def test_counts_and_interleaved_classes(shapes):
    assert shapes.images.shape == (2000, 3, 32, 32)
    assert shapes.images.dtype == torch.uint8
    assert torch.equal(shapes.labels, torch.arange(2000) % 10)
    assert shapes.info.classes == FIGURES
    assert shapes.groups is None
    assert shapes.notes == ()


def test_drawn_from_the_seed(shapes):
    again, other = load_dataset("shapes", split="test"), load_dataset("shapes", split="test", seed=1)
    assert torch.equal(shapes.images, again.images)
    assert shapes.digest == again.digest != other.digest
    assert not torch.equal(shapes.images, other.images)


def test_pixels_are_those_of_this_version():
    # a change here is a new SHAPES_VERSION
    images = draw_figures(torch.arange(20) % 10, 0, "test")
    assert hashlib.sha256(images.numpy().tobytes()).hexdigest()[:16] == "294d8784f6220f1a"


def test_every_image_differs(shapes):
    assert len(shapes.images.flatten(1).unique(dim=0)) == 2000


def test_mean_and_std_are_those_of_the_pixels(shapes, grouped):
    for dataset in (shapes, grouped["train"]):
        pixels = dataset.images.double().div(255).transpose(0, 1).flatten(1)
        assert torch.allclose(pixels.mean(1), torch.tensor(dataset.info.mean).double(), atol=0.01)
        assert torch.allclose(pixels.std(1), torch.tensor(dataset.info.std).double(), atol=0.01)


@pytest.mark.parametrize("warm", [None, np.arange(500) % 2 == 0])
def test_contrast_between_figure_and_background(warm):
    background, figure = _colours(_Draw(500, 0, "test"), warm)
    contrast = np.abs(background - figure).max(1)
    assert contrast.min() >= CONTRAST[0] - 1e-9
    assert contrast.max() <= CONTRAST[1] + 1e-9
    assert contrast.min() < 0.45
    assert contrast.max() > 0.95
    for colour in (background, figure):
        assert colour.min() >= -1e-9
        assert colour.max() <= 1 + 1e-9


@pytest.mark.parametrize("kind", range(10), ids=FIGURES)
def test_a_figure_fits_the_unit_circle(kind):
    y, x = np.mgrid[-1.5:1.5:151j, -1.5:1.5:151j]
    inside = signed_distance(np.array([kind]), x[None], y[None])[0] < 0
    assert not inside[np.hypot(x, y) > 1.04].any()
    assert 0.2 < inside.mean() * 9 / np.pi < 0.9  # neither a speck nor everything


def test_grouped_proportions(grouped):
    train = grouped["train"]
    assert torch.bincount(train.groups).tolist() == [3498, 184, 56, 1057]  # Waterbirds
    agree = (train.groups // 2 == train.groups % 2).double().mean()
    assert abs(agree - 0.95) < 0.001
    assert torch.bincount(grouped["test"].groups).min() >= 500
    for dataset in grouped.values():
        assert torch.equal(dataset.labels, dataset.groups // 2)
        assert len(dataset) == dataset.info.official_counts[dataset.split]
        assert dataset.info.groups is not None
        assert len(dataset.info.groups) == 4
    assert dataset_info("shapes-grouped").own_validation


def test_grouped_backgrounds_are_warm_or_cool(grouped):
    dataset = grouped["test"]
    corners = dataset.pixels(slice(None))[:, :, ::31, ::31].median(3).values.median(2).values
    red, _, blue = corners.unbind(1)
    warm = dataset.groups % 2 == 0
    assert ((red > blue) == warm).double().mean() > 0.9
