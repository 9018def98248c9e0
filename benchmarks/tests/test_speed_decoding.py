"""Both sides of the decoding benchmark read the same files to the same pixels."""

from __future__ import annotations

import torch
from benchmarks.speed import decoding
from fake_data import image_set

from robust_core.data import load_table
from robust_core.data.transforms import photo_pipeline


def test_both_sides_have_the_same_pixels(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUST_DATA", str(tmp_path / "none"))
    paths, source = decoding.jpeg_files(image_set(5), tmp_path, 4)
    assert source == "drawn images as JPEGs of 300x250 pixels"
    table = decoding.jpeg_table(paths)
    ours = load_table(table, "train", photo_pipeline(decoding.SIZE), cache_dir=tmp_path / "decoded")
    theirs = decoding._JpegFiles(paths)
    assert len(theirs) == len(ours) == 4
    for position in range(4):
        assert torch.equal(ours.pixels(slice(position, position + 1))[0], theirs[position][0])


def test_real_images_come_first(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUST_DATA", str(tmp_path))
    drawn, _ = decoding.jpeg_files(image_set(3), tmp_path, 3)
    (tmp_path / "cub" / "deep").mkdir(parents=True)
    for path in drawn:
        path.rename(tmp_path / "cub" / "deep" / path.name)
    found, source = decoding.jpeg_files(image_set(3), tmp_path, 2)
    assert source == "Waterbirds JPEGs"
    assert [path.name for path in found] == ["0.jpg", "1.jpg"]
    assert decoding.jpeg_table(found).root == tmp_path / "cub" / "deep"
