"""The real images, where they are at hand."""

from __future__ import annotations

import pytest
import torch
from fake_data import real_data

from robust_core.data import load_dataset

pytestmark = pytest.mark.data


def load(name, split, inside=None):
    folder = real_data()
    inside = name if inside is None else inside
    if not (folder / inside).is_dir():
        pytest.skip(f"no {inside} in {folder}")
    return load_dataset(name, folder, split, download=False)


def test_cifar10_archives():
    dataset = load("cifar10", "test")
    assert dataset.images.shape[1:] == (3, 32, 32)
    counts = torch.bincount(dataset.labels[:2000], minlength=10)
    assert counts.max() - counts.min() <= 1  # the first N are class-balanced
    assert 0.4 < dataset.pixels(slice(0, 1000)).mean() < 0.55


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar100_folders(split):
    dataset = load("cifar100", split)
    assert dataset.labels.max() < 100
    assert torch.equal(dataset.labels[:100], torch.arange(100))
    assert "not the official release" in dataset.notes[0]


@pytest.mark.parametrize("split", ["train", "test"])
def test_svhn_mat_equals_its_image_files(split):
    mat = load("svhn", split)
    images = real_data() / "svhn" / "images"
    if not images.is_dir():
        pytest.skip(f"no {images}")
    files = load_dataset("svhn", images, split, download=False)
    assert len(files) == len(mat)
    assert torch.equal(torch.bincount(files.labels), torch.bincount(mat.labels))
    if split == "train":  # lossless
        a, b = (x.images.flatten(1).double().sum(1).sort().values for x in (mat, files))
        assert torch.equal(a, b)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_tiny_imagenet_tree(split):
    dataset = load("tiny-imagenet", split, "tiny-imagenet-200")
    assert dataset.images.shape[1:] == (3, 64, 64)
    assert dataset.labels[: dataset.info.num_classes].tolist() == list(range(dataset.info.num_classes))
    assert list(dataset.info.classes) == sorted(dataset.info.classes)
