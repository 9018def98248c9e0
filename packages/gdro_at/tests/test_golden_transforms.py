"""The deterministic transforms against the published ones: pixels and printed form."""

from __future__ import annotations

import golden
import numpy as np
import pytest
import torch
from grfal_golden import DTYPES, load
from PIL import Image

from robust_core.data import DatasetInfo, ImageSet
from robust_core.data.transforms import face_pipeline, photo_pipeline, stretched_face_pipeline

PIPELINES = {
    "waterbirds_eval": ("image_u8", photo_pipeline()),
    "covid_eval": ("image_u8", photo_pipeline()),
    "celebA_eval": ("face_u8", face_pipeline()),
    "celebA_eval_resnet34": ("face_u8", stretched_face_pipeline()),
}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

pytestmark = pytest.mark.golden


def compare(images, name):
    arrays = load("data.npz")
    assert tuple(images.shape) == tuple(arrays[f"transform__{name}__shape"])
    found = images[:, ::7, ::7].double().numpy()
    assert np.abs(found - arrays[f"transform__{name}__strided7"]).max() <= 1e-6
    means = images.double().mean(dim=(1, 2)).numpy()
    assert np.abs(means - arrays[f"transform__{name}__mean"]).max() <= 1e-6


@pytest.mark.parametrize("suffix", DTYPES)
@pytest.mark.parametrize("name", PIPELINES)
def test_pixels(name, suffix):
    source, pipeline = PIPELINES[name]
    pixels = torch.from_numpy(pipeline(Image.fromarray(load("data.npz")[source])))
    images = pixels.to(DTYPES[suffix]) / 255
    if name == "covid_eval":  # normalised after the pipeline
        mean, std = (torch.tensor(values, dtype=images.dtype)[:, None, None] for values in IMAGENET)
        images = (images - mean) / std
    compare(images, name)


def test_cifar_is_only_scaled():
    image = torch.from_numpy(load("data.npz")["cifar_image_u8"]).permute(2, 0, 1)[None].contiguous()
    info = DatasetInfo("cifar", "CIFAR", ("a", "b"), image.shape[-1], *IMAGENET)
    scaled = ImageSet(info, "train", image, torch.zeros(1), torch.zeros(1)).pixels(slice(0, 1))[0]
    compare(scaled, "cifar_train_aug")


@pytest.mark.parametrize("name", PIPELINES)
def test_printed_form(name):
    lines = golden.load_json("gdro_at", "data.json")["transforms"][name]
    assert str(PIPELINES[name][1]).splitlines() == [line for line in lines if "Normalize" not in line]
