"""Bicubic resizing of maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from part.resize import height_and_width, resize, resize_matrix
from robust_core.errors import UserError


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_equals_the_library_that_the_published_code_calls(h, w, height, width, seed):
    maps = torch.rand(2, h, w, generator=torch.Generator().manual_seed(seed))
    resized = resize(maps, (height, width))
    for given_map, ours in zip(maps, resized, strict=True):
        theirs = Image.fromarray(given_map.numpy()).resize((width, height), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(ours.numpy(), np.asarray(theirs), atol=3e-7, rtol=0)


@pytest.mark.parametrize(("source", "target"), [(4, 32), (8, 64), (1, 7), (5, 5), (64, 16)])
def test_the_weights_of_a_pixel_sum_to_one(source, target):
    matrix = resize_matrix(source, target, torch.float64)
    assert matrix.shape == (target, source)
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(target, dtype=torch.float64), rtol=0, atol=1e-14)


def test_the_same_size_changes_nothing():
    maps = torch.rand(3, 6, 6)
    assert torch.equal(resize(maps, 6), maps)


def test_rows_are_rows():
    ramp = torch.arange(4.0)[None, :, None].expand(1, 4, 4)
    resized = resize(ramp, 16)[0]
    assert torch.all(resized.diff(dim=0) >= -1e-6)
    torch.testing.assert_close(resized, resized[:, :1].expand(-1, 16), rtol=0, atol=1e-6)


def test_a_map_of_its_own_equals_a_map_in_a_batch():
    maps = torch.rand(5, 4, 4)
    alone = torch.cat([resize(one[None], 32) for one in maps])
    torch.testing.assert_close(resize(maps, 32), alone, rtol=0, atol=1e-6)


def test_the_matrix_is_usable_after_inference_mode():
    with torch.inference_mode():
        resize(torch.rand(1, 3, 11), (13, 17))
    maps = torch.rand(1, 3, 11, requires_grad=True)
    resize(maps, (13, 17)).sum().backward()
    assert maps.grad is not None


def test_an_empty_axis_is_refused():
    with pytest.raises(UserError, match="Cannot resize an axis of 0 to 32"):
        resize_matrix(0, 32)


@pytest.mark.parametrize("size", [0, -1, True, 2.0, "32", None, (32,), (8, 8, 8), (8, 8.0), [8, "8"]])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(UserError, match=r"expected a whole number or \(H, W\), each at least 1"):
        height_and_width(size)


def test_sizes_of_other_libraries():
    assert height_and_width(np.int64(8)) == (8, 8)
    assert height_and_width(torch.zeros(3, 5).shape) == height_and_width([3, 5]) == (3, 5)


def test_complex_maps_are_refused():
    with pytest.raises(UserError, match=r"maps are torch\.complex64, expected real numbers"):
        resize(torch.zeros(1, 2, 2) + 0j, 4)
