"""Tiny folders of the published layouts: images of 48x40 pixels whose colour follows class and background."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COUNTS = ((7, 3, 2, 4), (3, 2, 2, 3), (4, 3, 3, 2))
"""Images per group in training, validation and test."""
WATERBIRDS = "waterbird_complete95_forest2water2"


def write_image(path: Path, label: int, place: int, number: int, kind: str = "JPEG") -> None:
    """Write noise on a colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 90, (40, 48, 3))
    pixels[..., 0] += 120 * label
    pixels[..., 1] += 60 * place
    Image.fromarray(pixels.astype(np.uint8)).save(path, kind, quality=90)


def write_list(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write rows as a CSV file with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_list(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="", encoding="utf8") as stream:
        return list(csv.DictReader(stream))


def _members(counts: Sequence[Sequence[int]], places: int = 2) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield number, split, label, place and turn in its group of each image, groups mixed as in a real list."""
    members = [
        (split, *divmod(group, places), turn)
        for split, sizes in enumerate(counts)
        for group, size in enumerate(sizes)
        for turn in range(size)
    ]
    members.sort(key=lambda entry: (entry[3], entry[0]))
    for number, (split, label, place, turn) in enumerate(members):
        yield number, split, label, place, turn


def write_waterbirds(root: Path, counts: Sequence[Sequence[int]] = COUNTS) -> Path:
    """Write ``data/waterbird_complete95_forest2water2``; returns ``root``."""
    folder = root / "data" / WATERBIRDS
    rows = []
    for number, split, label, place, _ in _members(counts):
        name = f"{label:03d}.Species/{number:04d}.jpg"
        write_image(folder / name, label, place, number)
        rows.append(
            {"img_id": number, "img_filename": name, "y": label, "split": split, "place": place}
            | {"place_filename": f"/p/{place}.jpg"}
        )
    write_list(folder / "metadata.csv", rows)
    return root


def write_celeba(root: Path, counts: Sequence[Sequence[int]] = COUNTS) -> Path:
    """Write the two lists of CelebA, in different orders, and ``img_align_celeba``; returns ``root``."""
    faces, partition = [], []
    for number, split, label, place, turn in _members(counts):
        name = f"{number:06d}.jpg"
        write_image(root / "data/img_align_celeba" / name, label, place, number)
        young = turn % 2
        faces.append(
            {"image_id": name, "Blond_Hair": 2 * label - 1, "Male": 2 * place - 1, "Young": 2 * young - 1}
        )
        partition.append({"image_id": name, "partition": split})
    write_list(root / "data/list_attr_celeba.csv", faces)
    write_list(root / "data/list_eval_partition.csv", partition[::-1])
    return root


def write_covid_list(root: Path, hospitals: int = 2) -> Path:
    """Write COVID CT as one ``metadata.csv``; returns ``root``."""
    rows = []
    for number, split, label, hospital, _ in _members([(3,) * 2 * hospitals] * 3, hospitals):
        name = f"site{hospital}/{number:04d}.png"
        write_image(root / name, label, hospital, number, "PNG")
        rows.append({"filename": name, "label": label, "source_id": hospital, "split": split})
    write_list(root / "metadata.csv", rows)
    return root


def write_covid_sites(root: Path, each: int = 6) -> Path:
    """Write COVID CT as the three official site folders, paths with backslashes; returns ``root``."""
    number = 0
    for site, file, column in (
        ("COV_I", "Iran.csv", "filename"),
        ("SARS-COV-2", "MetaInfo.csv", "path"),
        ("COV_C", "MetaInfo.csv", "path"),
    ):
        rows = []
        for label in (0, 1):
            for _ in range(each):
                name = f"images{label}/{number:04d}.png"
                write_image(root / site / name, label, number % 2, number, "PNG")
                rows.append({"label": label, column: name.replace("/", "\\")})
                number += 1
        write_list(root / site / file, rows)
    return root
