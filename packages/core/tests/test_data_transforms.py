"""Pipelines of crops and a resize: torchvision's pixels, sizes, keys, refusals."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from robust_core.data.transforms import (
    Pipeline,
    face_pipeline,
    photo_pipeline,
    published_pipeline,
    stretched_face_pipeline,
)
from robust_core.errors import UserError
from robust_core.image_files import DamagedImage, centre_cropped, open_image, read_content


def drawn(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(max_examples=25, deadline=None)
@given(height=st.integers(5, 60), width=st.integers(5, 60), size=st.integers(1, 40), seed=st.integers(0, 100))
def test_pixels_are_torchvisions(height, width, size, seed):
    from torchvision import transforms

    image = drawn(height, width, seed)
    resized = round(size * 256 / 224)
    theirs = transforms.Compose([transforms.Resize((resized, resized)), transforms.CenterCrop(size)])(image)
    assert np.array_equal(photo_pipeline(size)(image), np.asarray(theirs).transpose(2, 0, 1))
    least = min(178, height, width)
    theirs = transforms.Compose([transforms.CenterCrop(least), transforms.Resize((size, size))])(image)
    assert np.array_equal(face_pipeline(size)(image), np.asarray(theirs).transpose(2, 0, 1))


def test_offsets_are_rounded_to_even():
    positions = Image.fromarray(np.arange(8, dtype=np.uint8)[None].repeat(9, axis=0))
    assert np.asarray(centre_cropped(positions, 5))[0, 0] == 2  # 1.5
    assert np.asarray(centre_cropped(positions, 7))[0, 0] == 0  # 0.5
    assert centre_cropped(positions, 100).size == (8, 8)


def test_sizes():
    assert photo_pipeline().resize == (256, 256)
    assert photo_pipeline().size == (224, 224)
    assert photo_pipeline(64).resize == (73, 73)
    assert photo_pipeline(32).size == (32, 32)
    assert face_pipeline(64).size == (64, 64)
    assert stretched_face_pipeline().size == (178, 218)
    assert stretched_face_pipeline()(drawn(218, 178)).shape == (3, 178, 218)
    assert face_pipeline()(drawn(109, 89)).shape == (3, 224, 224)


def test_any_8_bit_image_becomes_rgb():
    grey = Image.fromarray(np.asarray(drawn(40, 40))[..., 0])
    for image in (grey, grey.convert("P"), grey.convert("RGBA"), grey.convert("1")):
        pixels = photo_pipeline(16)(image)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (3, 16, 16)
        assert np.array_equal(pixels[0], pixels[2])


def test_published_pipelines():
    for name in ("waterbirds", "covid", "my table"):
        assert published_pipeline(name) == photo_pipeline()
    assert published_pipeline("celebA", 64) == published_pipeline("celeba", 64) == face_pipeline(64)
    assert published_pipeline("celeba", official=True) == stretched_face_pipeline()
    for name, size in (("waterbirds", 224), ("celeba", 64)):
        with pytest.raises(
            UserError, match=f"exists for CelebA at the size 224 only, not for '{name}' at {size}"
        ):
            published_pipeline(name, size, official=True)


def test_keys_tell_pixels_apart():
    pipelines = [
        photo_pipeline(),
        photo_pipeline(64),
        face_pipeline(),
        stretched_face_pipeline(),
        Pipeline((256, 256)),
        Pipeline((64, 64), first_crop=10),
        Pipeline((64, 64), crop=10),
    ]
    assert len({pipeline.key for pipeline in pipelines}) == len(pipelines)
    # a stable text: a change of it makes every decoded image on every disk anew
    assert photo_pipeline().key == "rgb8 centre-crop=none bilinear-antialias=256x256 centre-crop=224"
    assert pickle.loads(pickle.dumps(photo_pipeline())) == photo_pipeline()


def test_refusals():
    with pytest.raises(UserError, match="An image size of 0 pixels is none"):
        photo_pipeline(0)
    with pytest.raises(UserError, match="A crop of 70 pixels does not fit into 64x80"):
        Pipeline((64, 80), crop=70)
    with pytest.raises(UserError, match=r"Images of 64x80 pixels \(height x width\) are not square"):
        Pipeline((64, 80))
    with pytest.raises(UserError, match="An image size of -1 pixels"):
        Pipeline((64, 64), first_crop=-1)


def test_what_is_no_file(tmp_path):
    with pytest.raises(DamagedImage, match="it is no regular file"):
        read_content(str(tmp_path))
    with pytest.raises(DamagedImage, match="No such file"):
        read_content(str(tmp_path / "none"))
    with pytest.raises(DamagedImage, match="null"):
        read_content("a\0b")
    large = tmp_path / "large"
    with large.open("wb") as stream:
        stream.truncate((256 << 20) + 1)  # takes no space
    with pytest.raises(DamagedImage, match="268,435,457 bytes are too many"):
        read_content(str(large))
    with pytest.raises(DamagedImage, match="it is empty"):
        open_image(b"")
