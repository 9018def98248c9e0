"""Order, crops and flips, and the same data for any number of processes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fake_data import image_set
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_core.data import batches, crop_and_flip, epoch_order, steps_per_epoch
from robust_core.errors import UserError


def by_hand(image, offset, flip, padding, fill=0):
    """One image at a time, as torchvision does it: pad, crop, mirror."""
    channels, height, width = image.shape
    bordered = torch.full((channels, height + 2 * padding, width + 2 * padding), fill, dtype=image.dtype)
    bordered[:, padding : padding + height, padding : padding + width] = image
    top, left = offset
    crop = bordered[:, top : top + height, left : left + width]
    return crop.flip(2) if flip else crop


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bool])
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_and_flip_is_pad_crop_mirror(dtype, channels):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, channels, 7, 9), generator=generator).to(dtype)
    offsets = torch.randint(0, 7, (20, 2), generator=generator)
    flips = torch.rand(20, generator=generator) < 0.5
    expected = torch.stack(
        [by_hand(x, o, f, 3) for x, o, f in zip(images, offsets.tolist(), flips.tolist(), strict=True)]
    )
    got = crop_and_flip(images, offsets, flips, 3)
    assert got.dtype == dtype
    assert torch.equal(got, expected)
    last = crop_and_flip(images.to(memory_format=torch.channels_last), offsets, flips, 3)
    assert torch.equal(last, expected)


def test_crop_and_flip_alone_and_with_another_border():
    images = image_set(4).images
    flips = torch.tensor([True, False, True, False])
    offsets = torch.tensor([[0, 0], [8, 8], [4, 4], [3, 1]])
    mirrored = crop_and_flip(images, None, flips, 4)
    assert torch.equal(mirrored[0], images[0].flip(2))
    assert torch.equal(mirrored[1], images[1])
    cropped = crop_and_flip(images, offsets, None, 4, fill=7)
    assert torch.equal(cropped[2], images[2])  # the centre: nothing moved
    assert (cropped[0, :, :4] == 7).all()
    assert torch.equal(cropped[1, :, :-4, :-4], images[1, :, 4:, 4:])
    assert crop_and_flip(images, None, None, 4) is images
    assert crop_and_flip(images[:0], offsets[:0], flips[:0], 4).shape == (0, 3, 32, 32)


def test_a_mask_follows_its_image():
    dataset = image_set(30)
    masks = dataset.images[:, :1] > 127
    for batch in batches(dataset, batch_size=8, seed=3, epoch=1):
        moved = crop_and_flip(masks[batch.indices], batch.offsets, batch.flips, batch.padding)
        assert torch.equal(moved, batch.images[:, :1] > 127 / 255)


def test_a_batch_is_what_it_records():
    dataset = replace(image_set(21), groups=torch.arange(21) % 4)
    for batch in batches(dataset, batch_size=8, seed=0, epoch=0):
        assert batch.images.dtype == torch.float32
        assert torch.equal(batch.labels, dataset.labels[batch.indices])
        assert torch.equal(batch.groups, dataset.groups[batch.indices])
        raw = dataset.pixels(batch.indices)
        for i in range(len(batch)):
            expected = by_hand(raw[i], batch.offsets[i].tolist(), bool(batch.flips[i]), 4)
            assert torch.equal(batch.images[i], expected)


def test_without_augmentation_pixels_are_exact():
    dataset = image_set(12)
    (batch,) = batches(dataset, batch_size=12, seed=0, epoch=0, augment=False)
    assert batch.offsets is None
    assert batch.flips is None
    assert torch.equal(batch.images, dataset.images[batch.indices].float() / 255)


def test_svhn_is_not_augmented():
    (batch,) = batches(image_set(10, "svhn"), batch_size=10, seed=0, epoch=0)
    assert batch.offsets is None
    assert batch.flips is None
    assert batch.padding == 0


def test_epoch_visits_every_image_once_and_epochs_differ():
    dataset = image_set(50)
    seen = torch.cat([b.indices for b in batches(dataset, batch_size=16, seed=1, epoch=0)])
    assert torch.equal(seen.sort().values, torch.arange(50))
    assert torch.equal(seen, epoch_order(50, 1, 0))
    assert not torch.equal(seen, epoch_order(50, 1, 1))
    assert not torch.equal(seen, epoch_order(50, 2, 0))


def test_indices_are_positions_in_the_given_set():
    dataset = image_set(50).subset(torch.arange(10, 50, 2))
    for batch in batches(dataset, batch_size=7, seed=0, epoch=0, augment=False):
        assert torch.equal(batch.images, dataset.pixels(batch.indices))


def test_steps_and_the_odd_last_batch():
    dataset = image_set(21)
    assert steps_per_epoch(21, 8) == 3
    assert steps_per_epoch(21, 8, drop_last=True) == 2
    assert steps_per_epoch(16, 8) == 2
    sizes = [len(b) for b in batches(dataset, batch_size=8, seed=0, epoch=0)]
    assert sizes == [8, 8, 5]
    assert [b.global_size for b in batches(dataset, batch_size=8, seed=0, epoch=0)] == sizes
    assert [len(b) for b in batches(dataset, batch_size=8, seed=0, epoch=0, drop_last=True)] == [8, 8]


def test_resuming_in_the_middle_gives_the_same_batches():
    dataset = image_set(40)
    whole = list(batches(dataset, batch_size=8, seed=5, epoch=2))
    rest = list(batches(dataset, batch_size=8, seed=5, epoch=2, start=3))
    assert len(rest) == 2
    for a, b in zip(whole[3:], rest, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.indices, b.indices)


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    list(batches(image_set(20), batch_size=8, seed=5, epoch=2))
    assert torch.equal(before, torch.get_rng_state())


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(1, 40),
    batch_size=st.integers(1, 17),
    world_size=st.integers(1, 5),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
    drop_last=st.booleans(),
)
def test_same_data_for_any_number_of_processes(n, batch_size, world_size, seed, epoch, drop_last):
    batch_size = max(batch_size, world_size)
    dataset = replace(image_set(n), groups=torch.arange(n) % 3)
    settings = {"batch_size": batch_size, "seed": seed, "epoch": epoch, "drop_last": drop_last}
    alone = list(batches(dataset, **settings))
    ranks = [list(batches(dataset, rank=r, world_size=world_size, **settings)) for r in range(world_size)]
    assert all(len(parts) == len(alone) for parts in ranks)
    for step, whole in enumerate(alone):
        parts = [ranks[r][step] for r in range(world_size)]
        if len(whole) < world_size:  # too few to share: each process works on all of them
            assert all(torch.equal(part.indices, whole.indices) for part in parts)
            parts = parts[:1]
        for field in ("images", "labels", "groups", "indices", "offsets", "flips"):
            together = torch.cat([getattr(part, field) for part in parts])
            assert torch.equal(together, getattr(whole, field)), field
        assert all(part.global_size == whole.global_size == len(whole) for part in parts)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_impossible_processes_are_refused():
    with pytest.raises(UserError, match="batch of 2 images cannot be shared by 3 processes"):
        next(batches(image_set(9), batch_size=2, seed=0, epoch=0, world_size=3))
    with pytest.raises(UserError, match="Rank 2 does not exist among 2"):
        next(batches(image_set(9), batch_size=2, seed=0, epoch=0, world_size=2, rank=2))


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    dataset = image_set(40)
    there = batches(dataset.to("cuda"), batch_size=16, seed=0, epoch=0)
    for a, b in zip(batches(dataset, batch_size=16, seed=0, epoch=0), there, strict=True):
        assert b.images.is_cuda
        assert torch.equal(a.images, b.images.cpu())
        assert torch.equal(a.indices, b.indices.cpu())
