"""Packed masks, and masks that follow their images."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from part.store import MaskStore, moved, pack_bits, unpack_bits
from robust_core.data import Batch, crop_and_flip
from robust_core.errors import UserError


def random_masks(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3


def batch_of(images: torch.Tensor, offsets: torch.Tensor | None, flips: torch.Tensor | None) -> Batch:
    n = images.shape[0]
    return Batch(
        images,
        torch.zeros(n, dtype=torch.int64),
        torch.arange(n),
        None,
        offsets,
        flips,
        padding=4,
        global_size=n,
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 70), st.integers(0, 2**31))
def test_bits_survive_packing(rows, count, seed):
    bits = random_masks(rows, count, seed=seed)
    packed = pack_bits(bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, -(-count // 8))
    assert torch.equal(unpack_bits(packed, count), bits)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 20),
    st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9)),
    st.integers(0, 2**31),
)
def test_a_store_gives_back_what_was_written(count, shape, seed):
    masks = random_masks(count, *shape, seed=seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    store = MaskStore(count, shape)
    for part in order.split(3):
        store.write(part, masks[part])
    assert torch.equal(store.read(torch.arange(count)), masks)
    assert torch.equal(store.read(order[:2]), masks[order[:2]])
    assert store.density() == pytest.approx(float(masks.float().mean()), abs=1e-6)


def test_what_was_not_written_is_low():
    store = MaskStore(5, (1, 4, 4))
    store.write(torch.tensor([3]), torch.ones(1, 1, 4, 4, dtype=torch.bool))
    assert store.read(torch.arange(5)).flatten(1).any(dim=1).tolist() == [False, False, False, True, False]
    assert store.density() == 0.2


def test_fifty_thousand_masks_take_six_megabytes():
    state = MaskStore(50_000, (1, 32, 32)).state_dict()
    assert state["packed"].numel() == 6_400_000


def test_the_state_goes_through_a_weights_only_file():
    masks = random_masks(7, 3, 5, 5)
    store = MaskStore(7, (3, 5, 5))
    store.write(torch.arange(7), masks)
    file = io.BytesIO()
    torch.save(store.state_dict(), file)
    file.seek(0)
    other = MaskStore(7, (3, 5, 5))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.read(torch.arange(7)), masks)


def test_the_state_is_a_snapshot():
    store = MaskStore(2, (1, 4, 4))
    state = store.state_dict()
    store.write(torch.arange(2), torch.ones(2, 1, 4, 4, dtype=torch.bool))
    assert not state["packed"].any()


def test_masks_of_another_shape_are_refused():
    store = MaskStore(2, (1, 4, 4))
    with pytest.raises(UserError, match="this store holds"):
        store.write(torch.arange(2), random_masks(2, 3, 4, 4))
    for other in (MaskStore(2, (3, 4, 4)), MaskStore(3, (1, 4, 4))):
        with pytest.raises(UserError, match="resume with the data set"):
            store.load_state_dict(other.state_dict())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.booleans(), st.booleans(), st.sampled_from([1, 3]))
def test_a_mask_follows_its_image(seed, cropped, flipped, channels):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(5, 3, 12, 12, generator=generator)
    offsets = torch.randint(0, 9, (5, 2), generator=generator) if cropped else None
    flips = torch.rand(5, generator=generator) < 0.5 if flipped else None
    # A mask that is a function of the image, and False on the black border that a crop brings in.
    masks = images[:, :channels] > 0.5
    shown = crop_and_flip(images, offsets, flips, 4)
    assert torch.equal(moved(masks, batch_of(shown, offsets, flips)), shown[:, :channels] > 0.5)


def test_moves_of_one_pixel_by_hand():
    masks = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    masks[:, 0, 2, 3] = True
    offsets = torch.tensor([[5, 4], [4, 4]])
    flips = torch.tensor([False, True])
    result = moved(masks, batch_of(torch.zeros(2, 3, 8, 8), offsets, flips))
    assert result.nonzero().tolist() == [[0, 0, 1, 3], [1, 0, 2, 4]]


@pytest.mark.parametrize("flipped", [False, True])
def test_a_mask_follows_a_resized_crop(flipped):
    masks = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    masks[:, 0, 2:4, 4:6] = True
    # all of it, the quarter around the mask, and one that does not show it
    boxes = torch.tensor([[0, 0, 8, 8], [0, 4, 4, 4], [4, 0, 4, 4]])
    flips = torch.full((3,), flipped)
    batch = batch_of(torch.zeros(3, 3, 8, 8), None, flips)
    expected = torch.zeros_like(masks)
    expected[0], expected[1, 0, 4:, :4] = masks[0], True
    result = moved(masks, replace(batch, boxes=boxes))
    assert torch.equal(result, expected.flip(3) if flipped else expected)
