"""Mistakes in a table of images, through the script: one sentence with row and file, and exit code 2."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from expt_runs import GDRO, WATERBIRDS, finished
from published_folders import COUNTS, read_list, write_celeba, write_covid_list, write_list, write_waterbirds
from published_folders import WATERBIRDS as FOLDER


@pytest.fixture
def root(tmp_path):
    """A Waterbirds folder of its own."""
    return write_waterbirds(tmp_path / "cub")


def change(path, row, **values):
    """Change cells of a data row (0 is the first below the header)."""
    rows = read_list(path)
    rows[row] = {**rows[row], **values}
    write_list(path, rows)
    return rows[row]


def refused(expt, words, *told, cwd="logs"):
    done = expt(*words)
    assert done.code == 2, done.out
    lines = done.err.strip().splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: ")
    for word in told:
        assert str(word) in lines[0]
    assert not Path(cwd).exists()
    return lines[0]


CELLS = [
    ({"split": "3"}, "split = '3' is no split"),
    ({"split": ""}, "split = '' is no split"),
    ({"y": "1.5"}, "y = '1.5' is not an integer"),
    ({"y": "bird"}, "y = 'bird' is not an integer"),
    ({"y": "2"}, "y = '2' is out of range"),
    ({"place": "x"}, "place = 'x' is not an integer"),
    ({"img_filename": "../elsewhere.jpg"}, "names no file below"),
]


@pytest.mark.parametrize(("values", "told"), CELLS, ids=[case[1] for case in CELLS])
def test_a_wrong_cell(expt, root, values, told):
    path = root / "data" / FOLDER / "metadata.csv"
    change(path, 4, **values)
    refused(expt, [*WATERBIRDS, root, *GDRO], told, f"Row 6 of {path}")


def test_a_missing_column(expt, root):
    path = root / "data" / FOLDER / "metadata.csv"
    write_list(path, [{k: v for k, v in row.items() if k != "place"} for row in read_list(path)])
    refused(expt, [*WATERBIRDS, root, *GDRO], f"{path} has no column 'place'")


def test_a_row_that_is_too_short(expt, root):
    path = root / "data" / FOLDER / "metadata.csv"
    lines = path.read_text(encoding="utf8").splitlines()
    lines[3] = "1,2"
    path.write_text("\n".join(lines), encoding="utf8")
    refused(expt, [*WATERBIRDS, root, *GDRO], f"Row 4 of {path} has 2 fields")


def test_a_folder_that_is_not_there(expt, tmp_path):
    done = expt(*WATERBIRDS, tmp_path / "nowhere", *GDRO)
    assert done.code == 2
    assert "nowhere does not exist" in done.err
    assert f"data/{FOLDER}/metadata.csv" in done.err


def test_an_empty_group_and_a_split_without_images(expt, tmp_path):
    counts = ((7, 0, 2, 4), *COUNTS[1:])
    root = write_waterbirds(tmp_path / "cub", counts)
    path = root / "data" / FOLDER / "metadata.csv"
    refused(expt, [*WATERBIRDS, root, *GDRO], path, "no training image of the group", "forest2water2 = 1")
    root = write_waterbirds(tmp_path / "other", (*COUNTS[:2], (0, 0, 0, 0)))
    refused(expt, [*WATERBIRDS, root, *GDRO], "metadata.csv", "test")
    root = write_waterbirds(tmp_path / "third", (COUNTS[0], (0, 0, 0, 0), COUNTS[2]))
    refused(expt, [*WATERBIRDS, root, *GDRO], "metadata.csv", "validation")


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "text"])
def test_an_image_that_cannot_be_had(expt, root, damage):
    path = root / "data" / FOLDER / "metadata.csv"
    rows = read_list(path)
    position = next(place for place, row in enumerate(rows) if row["split"] == "0" and row["y"] == "0")
    image = path.parent / rows[position]["img_filename"]
    content = {"truncated": image.read_bytes()[:200], "empty": b"", "text": b"no image"}
    if damage == "missing":
        image.unlink()
    else:
        image.write_bytes(content[damage])
    words = [*WATERBIRDS, root, "--train_type", "erm", "--n_epochs", "1", "--run-dir", "run"]
    told = refused(expt, words, image, f"row {position + 2} of {path}", cwd="run")
    assert "--skip-unreadable" in told
    done = expt(*words, "--skip_unreadable")
    assert done.code == 0, done.err
    assert "1 of 16 training images of Waterbirds were left out" in done.out
    counts = Path("run/counts.txt").read_text(encoding="utf8")
    assert f"n = {COUNTS[0][0] - 1 if rows[position]['place'] == '0' else COUNTS[0][0]}" in counts
    for file in ("counts.txt", "unitFlog.txt"):
        assert "1 of 16 training images of Waterbirds were left out" in Path("run", file).read_text("utf8")
    result = finished(Path("run"))
    assert any("1 of 16 training images" in note for note in result["data_notes"])
    assert result["test"]["natural_accuracy"] >= 0


def test_celeba_is_checked_alike(expt, tmp_path):
    root = write_celeba(tmp_path / "celebA")
    words = ["-d", "CelebA", "-t", "Blond_Hair", "-c", "Male", *WATERBIRDS[8:-1], "--root_dir", root]
    path = root / "data/list_attr_celeba.csv"
    refused(expt, [*words, "-c", "Mail"], f"{path} has no column 'Mail'", "did you mean 'Male'")
    refused(expt, [*words, "-c", "Blond_Hair"], "named twice")
    change(root / "data/list_eval_partition.csv", 3, partition="7")
    refused(expt, words, f"Row 5 of {root / 'data/list_eval_partition.csv'}", "partition = '7' is no split")
    (root / "data/list_eval_partition.csv").unlink()
    done = expt(*words)
    assert done.code == 2
    assert "no list_eval_partition.csv" in done.err


def test_covid_is_checked_alike(expt, tmp_path):
    root = write_covid_list(tmp_path / "covid")
    words = ["-d", "Covid", *WATERBIRDS[8:-1], "--root_dir", root]
    change(root / "metadata.csv", 0, label="covid")
    refused(expt, words, f"Row 2 of {root / 'metadata.csv'}", "label = 'covid' is not an integer")


def test_a_table_with_gaps_is_refused(expt, root):
    path = root / "data" / FOLDER / "metadata.csv"
    words = ["-d", "table", "--metadata", path, "-t", "y", "-c", "place", *WATERBIRDS[8:-1]]
    change(path, 2, place="3")
    refused(expt, words, f"Row 4 of {path}", "leaves a gap")
    refused(expt, [*words, "--metadata", "none.csv"], "none.csv does not exist")


def test_a_column_that_occurs_twice(expt, root):
    path = root / "data" / FOLDER / "metadata.csv"
    header, *rows = path.read_text(encoding="utf8").splitlines()
    path.write_text("\n".join([f"{header},place", *(f"{row},0" for row in rows)]), encoding="utf8")
    refused(expt, [*WATERBIRDS, root, *GDRO], f"{path} has 2 columns called 'place'; keep one of them")


def test_an_absolute_path_is_to_be_written_relatively(expt, root):
    path = root / "data" / FOLDER / "metadata.csv"
    rows = read_list(path)
    rows[0]["img_filename"] = str(path.parent / rows[0]["img_filename"])
    write_list(path, rows)
    refused(
        expt, [*WATERBIRDS, root, *GDRO], "names no file below the folder of the images", "relative to it"
    )


SHIFT = "-s label_shift_step -d CIFAR10 --minority_fraction .5"
EMPTIED = [
    (
        "-d CUB --root_dir {birds} --fraction 0.01",
        "--fraction 0.01 leaves no training image at all; take a larger one",
    ),
    (
        "-d CUB --root_dir {birds} --fraction 0.3",
        "--fraction 0.3 leaves no training image of the group 'waterbird_complete95 = 1, forest2water2 = 1'",
    ),
    (
        "-d table --metadata {list} -t y -c place --train_subset 3",
        "--train-subset 3 leaves no training image of the group",
    ),
    (
        f"{SHIFT} --imbalance_ratio 100000 --root_dir {{folders}}",
        "--imbalance-ratio 100000 leaves no training image of the groups",
    ),
    (
        f"{SHIFT} --imbalance_ratio 2 --val_fraction 0.999 --root_dir {{folders}}",
        "--val-fraction 0.999 leaves no training image at all; take a smaller one",
    ),
    (
        "-d CIFAR10 --validation 55 --root_dir {folders}",
        "--validation 55 leaves no training image of the groups",
    ),
    (
        "-d CIFAR10 --validation 10 --fraction 0.1 --imbalance_ratio 2 --root_dir {folders}",
        "--fraction 0.1 leaves no training image of the groups",
    ),
    (
        "-d CIFAR10 --validation 10 --train_subset 9 --root_dir {folders}",
        "--train-subset 9 leaves no training image of the group ",
    ),
    ("-d shapes --fraction 0.001", "--fraction 0.001 leaves no training image of the group"),
    ("-d shapes --train_subset 2", "--train-subset 2 leaves no training image of the groups"),
]


@pytest.mark.parametrize(("words", "told"), EMPTIED, ids=[case[1] for case in EMPTIED])
def test_a_flag_that_empties_a_group_is_named(expt, birds, folders, words, told):
    places = {"birds": birds, "folders": folders, "list": birds / "data" / FOLDER / "metadata.csv"}
    refused(expt, [*WATERBIRDS[:-1], *words.format(**places).split()], told)


def test_a_class_that_the_folders_lack_is_not_laid_on_a_flag(expt, folders, tmp_path):
    shutil.copytree(folders, tmp_path / "cifar")
    for image in (tmp_path / "cifar/train/truck").iterdir():
        image.unlink()
    words = ["-d", "CIFAR10", "--validation", "10", "--root_dir", tmp_path / "cifar"]
    refused(
        expt,
        [*WATERBIRDS[:-1], *words],
        "What was found of CIFAR-10 leaves no training image of the group 'truck'",
    )


def test_a_group_that_the_table_lacks_is_not_laid_on_the_fraction(expt, tmp_path):
    root = write_waterbirds(tmp_path / "cub", ((7, 0, 2, 4), *COUNTS[1:]))
    refused(expt, [*WATERBIRDS, root, "--fraction", "0.9"], "metadata.csv has no training image of the group")
