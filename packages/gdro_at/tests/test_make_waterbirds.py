import csv
import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_data import real_data
from PIL import Image

from gdro_at import make_waterbirds as module
from gdro_at.composites import compose, draw_places, draw_splits, is_waterbird, shrunk
from gdro_at.make_waterbirds import Recipe, main, make_waterbirds
from robust_core.errors import UserError

SPECIES = ("001.Black_footed_Albatross", "002.Cardinal", "003.Eastern_Towhee")


@pytest.fixture
def sources(tmp_path):
    """Make 3 species of 10 photos (40x24, of one colour) whose masks cover the left half, and 40 photos of places."""
    cub, places = tmp_path / "CUB", tmp_path / "places"
    lists = {"images": [], "train_test_split": [], "image_class_labels": [], "classes": []}
    number = 0
    for index, species in enumerate(SPECIES):
        lists["classes"].append(f"{index + 1} {species}")
        for photo in range(10):
            number += 1
            file = f"{species}/{species[4:]}_{photo:04d}.jpg"
            for folder, name in (("images", file), ("segmentations", file.replace(".jpg", ".png"))):
                (cub / folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 24), (200, 10 * index, 5 * photo)).save(cub / "images" / file, quality=95)
            mask = Image.new("L", (40, 24), 0)
            mask.paste(255, (0, 0, 20, 24))
            mask.save(cub / "segmentations" / file.replace(".jpg", ".png"))
            lists["images"].append(f"{number} {file}")
            lists["train_test_split"].append(f"{number} {int(photo < 6)}")
            lists["image_class_labels"].append(f"{number} {index + 1}")
    for name, lines in lists.items():
        (cub / f"{name}.txt").write_text("\n".join(lines) + "\n")
    for category, blue in (
        ("b/bamboo_forest", 0),
        ("f/forest/broadleaf", 0),
        ("o/ocean", 250),
        ("l/lake/natural", 250),
    ):
        (places / category).mkdir(parents=True)
        for photo in range(20):
            path = places / category / f"{photo:08d}.jpg"
            Image.new("RGB", (32, 32), (0, 120, blue)).save(path, quality=95)
    return cub, places


def read(folder):
    with (folder / "metadata.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def command(sources, out, *more):
    return main(["--cub", str(sources[0]), "--places", str(sources[1]), "--out", str(out), *more])


def test_counts_places_and_files(sources, tmp_path):
    assert command(sources, tmp_path / "out", "--confounder_strength", "0.9", "--val-fraction", "0.5") == 0
    folder = tmp_path / "out/data/waterbird_complete90_forest2water2"
    rows = read(folder)
    assert list(rows[0]) == ["img_id", "img_filename", "y", "split", "place", "place_filename"]
    assert [int(row["img_id"]) for row in rows] == list(range(1, 31))
    assert Counter(row["split"] for row in rows) == {"0": 9, "1": 9, "2": 12}
    # the towhee counts as published
    assert {row["img_filename"][:3] for row in rows if row["y"] == "1"} == {"001", "003"}
    for split, own in (("0", 0.9), ("1", 0.5), ("2", 0.5)):
        for label in "01":
            members = [row for row in rows if (row["split"], row["y"]) == (split, label)]
            share = own if label == "1" else 1 - own
            assert sum(row["place"] == "1" for row in members) == round(share * len(members))
    assert len({row["place_filename"] for row in rows}) == 30
    for row in rows:
        water = row["place_filename"].startswith(("/o/ocean/", "/l/lake/natural/"))
        assert water == (row["place"] == "1")
        assert (sources[1] / row["place_filename"][1:]).is_file()
        with Image.open(folder / row["img_filename"]) as image:
            assert image.size == (40, 24)
            pixels = np.asarray(image).astype(int)
        with Image.open(sources[0] / "images" / row["img_filename"]) as bird:
            assert np.abs(pixels[:, :14] - np.asarray(bird)[:, :14]).max() <= 6
        assert np.abs(pixels[:, 26:] - (0, 120, 250 if water else 0)).max() <= 6
    assert not list(folder.rglob("*.tmp"))


def test_same_seed_same_bytes_and_another_seed_another_set(sources, tmp_path):
    recipe = Recipe("made", size=12)
    one, two = (make_waterbirds(*sources, tmp_path / name, recipe) for name in ("a", "b"))
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) == 32
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    with Image.open(one / files[0]) as image:
        assert image.size == (20, 12)
    other = make_waterbirds(*sources, tmp_path / "c", Recipe("made", size=12, seed=1))
    assert (other / "metadata.csv").read_bytes() != (one / "metadata.csv").read_bytes()


def test_an_interrupted_set_goes_on_and_keeps_what_is_finished(sources, tmp_path, monkeypatch):
    recipe, made, calls = Recipe("made"), module._made, []

    def stop_after_seven(*given):
        if len(calls) == 7:
            raise KeyboardInterrupt
        calls.append(given)
        return made(*given)

    monkeypatch.setattr(module, "_made", stop_after_seven)
    with pytest.raises(KeyboardInterrupt):
        make_waterbirds(*sources, tmp_path / "a", recipe)
    folder = tmp_path / "a/data/made"
    assert not (folder / "metadata.csv").exists()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jpg")}
    assert len(before) == 7
    monkeypatch.setattr(module, "_made", made)
    make_waterbirds(*sources, tmp_path / "a", recipe)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    whole = make_waterbirds(*sources, tmp_path / "b", recipe)
    for path in whole.rglob("*.*"):
        if path.is_file():
            assert path.read_bytes() == (folder / path.relative_to(whole)).read_bytes()


def test_another_set_in_the_folder_is_refused_or_replaced(sources, tmp_path, capsys):
    assert command(sources, tmp_path, "--name", "made") == 0
    assert command(sources, tmp_path, "--name", "made", "--labels", "corrected") == 2
    assert "holds a set of other settings" in capsys.readouterr().err
    assert command(sources, tmp_path, "--name", "made", "--labels", "corrected", "--overwrite") == 0
    rows = read(tmp_path / "data/made")
    assert {row["img_filename"][:3] for row in rows if row["y"] == "1"} == {"001"}


def test_shares_outside_of_0_1_are_refused(sources, tmp_path, capsys):
    for flag, value in (("--confounder-strength", "1.5"), ("--val-fraction", "-0.1"), ("--size", "0")):
        assert command(sources, tmp_path, flag, value) == 2
        error = capsys.readouterr().err
        assert flag in error
        assert value in error
        assert error.count("\n") == 1
    assert command(sources, tmp_path, "--name", "../x") == 2
    assert not (tmp_path / "data").exists()


def damage(path, content=None):
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("images.txt", None, "must name the folder of CUB-200-2011"),
        ("images.txt", b"", "lists no image"),
        ("images.txt", b"1\n", "Line 1 of"),
        ("train_test_split.txt", b"1 0\n", "has no line for image 2"),
        ("train_test_split.txt", b"\n".join(b"%d 7" % n for n in range(1, 31)), "expected 0 or 1"),
        ("classes.txt", b"1 001.Gull\n", "has no line for image 11"),
        ("images/002.Cardinal/Cardinal_0001.jpg", None, "is not there"),
        ("images/002.Cardinal/Cardinal_0001.jpg", b"no image", "cannot be read"),
        ("segmentations/002.Cardinal/Cardinal_0001.png", None, "unpack CUB's segmentations"),
    ],
)
def test_damaged_sources_end_in_one_sentence(sources, tmp_path, capsys, file, content, told):
    damage(sources[0] / file, content)
    assert command(sources, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert told in error
    assert Path(file).name in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").rglob("metadata.csv"))


def test_a_mask_of_another_size(sources, tmp_path):
    path = sources[0] / "segmentations/002.Cardinal/Cardinal_0001.png"
    Image.new("L", (24, 40)).save(path)
    with pytest.raises(UserError, match=r"has 24x40 pixels, its photo 40x24"):
        make_waterbirds(*sources, tmp_path, Recipe("made"))


def test_too_few_backgrounds_and_missing_categories(sources, tmp_path, capsys):
    for photo in range(15):
        for category in ("o/ocean", "l/lake/natural"):
            (sources[1] / category / f"{photo:08d}.jpg").unlink()
    assert command(sources, tmp_path) == 2
    assert "water backgrounds are needed, one per bird, but" in capsys.readouterr().err
    (sources[1] / "o").rename(sources[1] / "x")
    assert command(sources, tmp_path) == 2
    assert "has no folder 'ocean'" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("layout", ["data_large", "."])
def test_layouts_of_places(sources, tmp_path, layout):
    places = sources[1]
    if layout == "data_large":
        (tmp_path / "large").mkdir()
        places.rename(tmp_path / "large/data_large")
        places = tmp_path / "large"
        start = ("/o/ocean/", "/l/lake/natural/")
    else:
        for letter in "bfol":
            for folder in list((places / letter).iterdir()):
                folder.rename(places / folder.name)
            (places / letter).rmdir()
        start = ("/ocean/", "/lake/natural/")
    rows = read(make_waterbirds(sources[0], places, tmp_path, Recipe("made")))
    assert all(row["place_filename"].startswith(start) == (row["place"] == "1") for row in rows)


def test_composition_to_the_pixel():
    bird = Image.new("RGB", (4, 2), (100, 100, 100))
    place = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("RGB")
    mask = Image.fromarray(np.array([[255, 0, 0, 128], [255, 0, 0, 0]], dtype=np.uint8))
    made = np.asarray(compose(bird, mask, place))
    assert made.shape == (2, 4, 3)
    assert (made[:, 0] == 100).all()
    # cropped to its rows 2 to 5, then each output pixel covers 2x2 of them
    expected = np.arange(64).reshape(8, 8)[2:6].reshape(2, 2, 4, 2).mean((1, 3))
    assert np.abs(made[:, 1:3, 0] - expected[:, 1:3]).max() <= 1.5
    assert abs(int(made[0, 3, 0]) - (100 * 128 + expected[0, 3] * 127) / 255) <= 1.5
    assert shrunk(bird, None) is bird
    assert shrunk(bird, 5) is bird
    assert shrunk(bird, 1).size == (2, 1)


def test_whole_words_free_three_species():
    wrong = ("021.Eastern_Towhee", "088.Western_Meadowlark", "102.Western_Wood_Pewee")
    right = ("062.Herring_Gull", "086.Pacific_Loon", "053.Western_Grebe", "146.Forsters_Tern", "Frigatebird")
    land = ("029.American_Crow", "017.Cardinal", "047.American_Goldfinch")
    for published in (True, False):
        assert all(is_waterbird(name, published=published) for name in right)
        assert not any(is_waterbird(name, published=published) for name in land)
        assert all(is_waterbird(name, published=published) is published for name in wrong)


@pytest.mark.data
def test_labels_and_counts_are_those_of_the_published_table():
    with gzip.open(real_data() / "cub/metadata_original_full.csv.gz", "rt", newline="") as stream:
        rows = list(csv.DictReader(stream))
    labels = torch.tensor([int(is_waterbird(row["img_filename"].partition("/")[0])) for row in rows])
    assert labels.tolist() == [int(row["y"]) for row in rows]
    published = Counter((int(row["split"]), int(row["y"]), int(row["place"])) for row in rows)
    splits = torch.tensor([int(row["split"]) for row in rows])
    places = draw_places(labels, splits, 0.95, seed=0)
    assert Counter(zip(splits.tolist(), labels.tolist(), places.tolist(), strict=True)) == published
    sizes = torch.bincount(draw_splits([row["split"] != "2" for row in rows], 0.2, seed=0))
    assert sizes.tolist() == torch.bincount(splits).tolist()
