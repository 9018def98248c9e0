"""Random resized crops of whole batches: drawn as published, resampled as interpolate does, recorded."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from fake_data import image_set
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from robust_core.data import batches
from robust_core.data.augment import random_boxes, resized_crops
from robust_core.randomness import generator_for
from robust_core.training.method import StepContext, micro_batches


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def resizing_set(n=21, **changes):
    plain = image_set(n)
    return replace(plain, info=replace(plain.info, resized_crop=True, **changes), groups=torch.arange(n) % 4)


@pytest.mark.parametrize("size", [(7, 9), (32, 32), (11, 4)])
def test_the_whole_image_comes_back_to_the_bit(size):
    images = torch.randint(0, 256, (5, 3, *size), dtype=torch.uint8, generator=generator())
    boxes = torch.tensor([[0, 0, *size]]).expand(5, 4)
    assert torch.equal(resized_crops(images, boxes), images.float())
    flips = torch.tensor([True, False, True, True, False])
    expected = torch.where(flips[:, None, None, None], images.flip(3), images).float()
    assert torch.equal(resized_crops(images, boxes, flips), expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), height=st.integers(1, 12), width=st.integers(1, 12))
def test_a_box_is_cut_and_interpolated(seed, height, width):
    draw = generator(seed)
    images = torch.randint(0, 256, (6, 2, height, width), dtype=torch.uint8, generator=draw)
    boxes = random_boxes(6, height, width, draw, area=(0.01, 1.0), ratio=(0.2, 5.0))
    flips = torch.rand(6, generator=draw) < 0.5
    found = resized_crops(images, boxes, flips)
    for image, box, flip, ours in zip(images, boxes.tolist(), flips, found, strict=True):
        top, left, tall, wide = box
        cut = image[None, :, top : top + tall, left : left + wide].double()
        theirs = interpolate(cut, size=(height, width), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(ours.double(), theirs.flip(2) if flip else theirs, rtol=0, atol=1e-3)
    assert found.min() >= 0
    assert found.max() <= 255


def test_no_image_and_float_images():
    assert resized_crops(torch.zeros(0, 3, 4, 4), torch.zeros(0, 4, dtype=torch.int64)).shape == (0, 3, 4, 4)
    images = torch.rand(3, 3, 8, 8, generator=generator())
    before = images.clone()
    found = resized_crops(images, random_boxes(3, 8, 8, generator()))
    assert torch.equal(images, before)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("size", [(224, 224), (50, 80)])
def test_boxes_lie_within_and_cover_the_ranges(size):
    boxes = random_boxes(20_000, *size, generator()).double()
    top, left, tall, wide = boxes.unbind(1)
    assert boxes.min() >= 0
    assert (top + tall).max() <= size[0]
    assert (left + wide).max() <= size[1]
    # rounding of the sides moves area and ratio by up to half a pixel of each
    area, slack = tall * wide / (size[0] * size[1]), 1.2 / min(size)
    assert 0.7 - slack <= area.min() <= 0.7 + slack
    ratio = wide / tall
    assert 3 / 4 - slack <= ratio.min()
    assert ratio.max() <= 4 / 3 + 2 * slack
    if size[0] == size[1]:
        assert ratio.min() < 0.78 < 1.28 < ratio.max()
        assert area.max() > 0.99
    common = tall == tall.mode().values
    free = size[0] - int(tall.mode().values)
    assert top[common].unique().tolist() == list(range(free + 1))  # both ends included


def test_the_distribution_is_torchvisions():
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = torch.zeros(3, 60, 60)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, [0.7, 1.0], [3 / 4, 4 / 3]) for _ in range(1500)]
    ).double()
    ours = random_boxes(4000, 60, 60, generator()).double()
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.6
    assert (ours.std(0) - theirs.std(0)).abs().max() < 0.5


@pytest.mark.parametrize(("size", "box"), [((10, 40), [0, 13, 10, 13]), ((40, 10), [13, 0, 13, 10])])
def test_where_nothing_fits_the_central_box_is_taken(size, box):
    assert random_boxes(3, *size, generator(), area=(1.0, 1.0)).tolist() == [box] * 3


def test_faces_are_cut_no_narrower_than_tall():
    boxes = random_boxes(1000, 224, 224, generator(), ratio=(1.0, 4 / 3))
    assert (boxes[:, 3] >= boxes[:, 2]).all()
    dataset = resizing_set(crop_ratio=(1.0, 4 / 3))
    for batch in batches(dataset, batch_size=8, seed=0, epoch=0):
        assert (batch.boxes[:, 3] >= batch.boxes[:, 2]).all()


def test_a_batch_is_what_it_records():
    dataset = resizing_set()
    for batch in batches(dataset, batch_size=8, seed=0, epoch=0):
        assert batch.offsets is None
        assert batch.padding == 0
        stored = dataset.images[batch.indices]
        assert torch.equal(batch.images, resized_crops(stored, batch.boxes, batch.flips) / 255)
        assert batch.images.min() >= 0
        assert batch.images.max() <= 1
    flips = [batch.flips for batch in batches(dataset, batch_size=21, seed=0, epoch=0)]
    assert 0 < flips[0].sum() < 21


def test_any_number_of_processes_sees_the_same():
    dataset = resizing_set()
    whole = list(batches(dataset, batch_size=8, seed=5, epoch=2))
    for world_size in (2, 3):
        parts = [
            list(batches(dataset, batch_size=8, seed=5, epoch=2, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        for step, batch in enumerate(whole):
            for name in ("images", "boxes", "flips", "labels"):
                joined = torch.cat([getattr(part[step], name) for part in parts])
                assert torch.equal(joined, getattr(batch, name)), name
    assert torch.equal(
        next(iter(batches(dataset, batch_size=8, seed=5, epoch=2, start=1))).boxes, whole[1].boxes
    )


def test_without_augmentation_nothing_is_cut():
    dataset = resizing_set()
    batch = next(iter(batches(dataset, batch_size=4, seed=0, epoch=0, augment=False)))
    assert batch.boxes is None
    assert batch.flips is None
    assert torch.equal(batch.images, dataset.pixels(batch.indices))
    without_flips = resizing_set(flip=False)
    batch = next(iter(batches(without_flips, batch_size=4, seed=0, epoch=0)))
    assert batch.flips is None
    assert batch.boxes.shape == (4, 4)


def test_boxes_go_with_their_images_into_pieces():
    batch = next(iter(batches(resizing_set(), batch_size=21, seed=0, epoch=0)))
    context = StepContext(0, 0, 0, 0, 1, None, (0, 21), 21)
    pieces = [piece for piece, _ in micro_batches(batch, context, 4)]
    assert torch.equal(torch.cat([piece.boxes for piece in pieces]), batch.boxes)


def test_the_draw_is_that_of_the_generator_alone():
    first = random_boxes(9, 32, 32, generator_for(0, "augment", 1, 2))
    torch.manual_seed(math.floor(1e6))
    assert torch.equal(first, random_boxes(9, 32, 32, generator_for(0, "augment", 1, 2)))
    assert not torch.equal(first, random_boxes(9, 32, 32, generator_for(0, "augment", 1, 3)))
