"""Readers of grouped data sets: layouts, joins, and one sentence for each mistake in a table."""

from __future__ import annotations

import csv

import pytest
import torch
from fake_data import real_data

from robust_core.data.celeba import read_celeba
from robust_core.data.covid import covid_split, read_covid
from robust_core.data.groups import check_groups, group_counts
from robust_core.data.listed import read_listed
from robust_core.data.presence import row_of
from robust_core.data.waterbirds import read_waterbirds
from robust_core.errors import UserError

BIRDS = "waterbird_complete95_forest2water2"
HEADER = ["img_id", "img_filename", "y", "split", "place", "place_filename"]


def write_csv(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def bird_rows():
    """Each group once in each split; image k is a/k.jpg in row k + 2."""
    cases = [(split, y, place) for split in range(3) for y in range(2) for place in range(2)]
    return [[k, f"a/{k}.jpg", y, split, place, "p.jpg"] for k, (split, y, place) in enumerate(cases)]


def write_birds(root, rows=None, header=HEADER, images=True):
    rows = bird_rows() if rows is None else rows
    path = write_csv(root / "data" / BIRDS / "metadata.csv", header, rows)
    if images:
        (path.parent / "a").mkdir()
        for k in range(12):
            (path.parent / "a" / f"{k}.jpg").touch()
    return path


def write_faces(root, images=("1.jpg", "2.jpg", "3.jpg"), attributes=("-1,1", "1,-1", "1,1"), partition=None):
    data = root / "data"
    (data / "img_align_celeba").mkdir(parents=True)
    rows = [[image, *values.split(",")] for image, values in zip(images, attributes, strict=True)]
    write_csv(data / "list_attr_celeba.csv", ["image_id", "Blond_Hair", "Male"], rows)
    listed = [(image, k % 3) for k, image in enumerate(images)] if partition is None else partition
    write_csv(data / "list_eval_partition.csv", ["image_id", "partition"], listed)
    return data


SITES = (
    ("COV_I", "Iran.csv", "filename"),
    ("SARS-COV-2", "MetaInfo.csv", "path"),
    ("COV_C", "MetaInfo.csv", "path"),
)


def write_sites(root, per_class=20, reverse=False):
    for site, file, column in SITES:
        rows = [[label, f"sub\\{label}_{k}.png"] for k in range(per_class) for label in range(2)]
        write_csv(root / site / file, ["label", column], rows[::-1] if reverse else rows)


def write_listed(root, header=("img_filename", "y", "place", "split"), rows=None):
    cases = [(y, place) for y in range(3) for place in range(3)] * 3
    plain = [[f"{k}.png", y, place, k // 9] for k, (y, place) in enumerate(cases)]
    return write_csv(root / "list.csv", header, plain if rows is None else rows)


@pytest.mark.parametrize("inside", ["", "cub", "cub/data"])
def test_waterbirds_root_is_the_folder_its_parent_or_its_data(tmp_path, inside):
    write_birds(tmp_path / "cub")
    table = read_waterbirds(tmp_path / inside)
    assert table.root == tmp_path / "cub" / "data" / BIRDS
    assert table.groups.tolist() == [0, 1, 2, 3] * 3
    assert table.splits.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert table.rows.tolist() == list(range(2, 14))
    assert table.info.classes == ("landbird", "waterbird")
    assert table.info.groups[1] == "waterbird_complete95 = 0, forest2water2 = 1"
    assert table.notes == (
        "Waterbirds: 4 training, 4 validation and 4 test images, not the official release",
    )
    assert check_groups(table) == ()


def test_waterbirds_default_root(tmp_path, monkeypatch):
    write_birds(tmp_path / "cub")
    monkeypatch.chdir(tmp_path)
    assert len(read_waterbirds()) == 12


def test_missing_metadata_says_the_tree_and_what_is_there(tmp_path):
    write_birds(tmp_path)
    with pytest.raises(UserError) as caught:
        read_waterbirds(tmp_path, "waterbird_complete50")
    text = str(caught.value)
    assert f"holds no waterbird_complete50_forest2water2 (but {BIRDS})" in text
    assert f"{tmp_path}/data/waterbird_complete50_forest2water2/metadata.csv" in text
    with pytest.raises(UserError, match="does not exist; name the folder"):
        read_waterbirds(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a folder"):
        read_waterbirds(tmp_path / "data" / BIRDS / "metadata.csv")


def test_waterbirds_takes_one_confounder(tmp_path):
    with pytest.raises(UserError, match="was given 2 confounders, expected one"):
        read_waterbirds(tmp_path, "y", ["a", "b"])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("y", "two", "y = 'two' is not an integer, expected 0 or 1"),
        ("y", "1.0", "y = '1.0' is not an integer"),
        ("y", "", "y = '' is not an integer"),
        ("y", "2", "y = '2' is out of range, expected 0 or 1"),
        ("y", "9" * 30, "is out of range"),
        ("place", "-1", "place = '-1' is out of range, expected 0 or 1"),
        ("split", "3", r"split = '3' is no split, expected 0 \(train\), 1 \(validation\) or 2 \(test\)"),
        ("img_filename", "a/3.jpg", "img_filename = 'a/3.jpg' stands in row 5 already; remove one"),
        ("img_filename", "a\\3.jpg", "stands in row 5 already"),
        ("img_filename", " ", "names no file below the folder"),
        ("img_filename", "/etc/x.jpg", "names no file below the folder"),
        ("img_filename", "C:\\x.jpg", "names no file below the folder"),
        ("img_filename", "a/../../x.jpg", "names no file below the folder"),
    ],
)
def test_a_wrong_entry_is_named_with_row_and_file(tmp_path, column, value, message):
    rows = bird_rows()
    rows[7][HEADER.index(column)] = value
    path = write_birds(tmp_path, rows)
    with pytest.raises(UserError, match=message) as caught:
        read_waterbirds(tmp_path)
    assert str(caught.value).startswith(f"Row 9 of {path}: ")
    assert "\n" not in str(caught.value)


def test_a_needed_column_must_occur_once(tmp_path):
    rows = [[*row, row[2]] for row in bird_rows()]
    path = write_birds(tmp_path, rows, [*HEADER, "place_filename"])
    assert len(read_waterbirds(tmp_path)) == 12
    write_csv(path, [*HEADER, "y"], rows)
    with pytest.raises(UserError, match=r"metadata.csv has 2 columns called 'y'; keep one of them"):
        read_waterbirds(tmp_path)


def test_a_missing_column_is_named_with_the_nearest(tmp_path):
    write_birds(tmp_path, header=["img_id", "img_filenames", *HEADER[2:]])
    with pytest.raises(
        UserError, match=r"metadata.csv has no column 'img_filename'; did you mean 'img_filenames'"
    ):
        read_waterbirds(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column 'img_filename'. Its columns: none"),
        (b"img_filename,y,place,split\n", "has no rows; expected one for each image"),
        (b"img_filename,y,place,split\na.jpg,0,0\n", "Row 2 of .* has 3 fields, its header has 4"),
        (b"img_filename,y,place,split\n\xff.jpg,0,0,0\n", "cannot be read .* in UTF-8"),
        (b'img_filename,y,place,split\n"a.jpg,0,0,0\n', "cannot be read .* comma-separated"),
    ],
)
def test_a_damaged_table(tmp_path, content, message):
    path = write_birds(tmp_path, images=False)
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_waterbirds(tmp_path)


def test_odd_but_whole_tables_are_read(tmp_path):
    path = write_birds(tmp_path, images=False)
    lines = [
        "\ufeffsplit, y ,place,img_filename",
        "train,0,0,./a/0.jpg",
        "",
        "val,+1,1,a\\1.jpg",
        "TEST, 1,0,b.jpg",
    ]
    path.write_text("\r\n".join(lines), encoding="utf8")
    table = read_waterbirds(tmp_path)
    assert table.names == ("a/0.jpg", "a/1.jpg", "b.jpg")
    assert table.splits.tolist() == [0, 1, 2]
    assert table.groups.tolist() == [0, 3, 2]
    assert table.rows.tolist() == [2, 4, 5]


def test_an_empty_training_group_of_a_table(tmp_path):
    write_birds(tmp_path, [row for row in bird_rows() if row[0] != 2])
    with pytest.raises(
        UserError, match=r"no training image of the group 'waterbird_complete95 = 1, forest2water2 = 0'"
    ):
        check_groups(read_waterbirds(tmp_path))


@pytest.mark.parametrize("inside", ["", "celebA", "celebA/data"])
def test_celeba_is_joined_by_image_id(tmp_path, inside):
    images = [f"{k:06d}.jpg" for k in (5, 1, 4, 2)]
    partition = [
        ("000001.jpg", 1),
        ("000002.jpg", 2),
        ("000003.jpg", 2),
        ("000004.jpg", 0),
        ("000005.jpg", 0),
    ]
    write_faces(tmp_path / "celebA", images, ["-1,1", "1,-1", "1,1", "-1,-1"], partition)
    table = read_celeba(tmp_path / inside)
    assert table.names == tuple(images)
    assert table.splits.tolist() == [0, 1, 0, 2]
    assert table.labels.tolist() == [0, 1, 1, 0]
    assert table.groups.tolist() == [1, 2, 3, 0]
    assert table.rows.tolist() == [2, 3, 4, 5]
    assert "not the official release" in table.notes[0]
    assert table.notes[1] == (
        "CelebA: 1 images of list_eval_partition.csv have no attributes and are left out"
    )


def test_celeba_without_and_with_other_confounders(tmp_path):
    write_faces(tmp_path)
    table = read_celeba(tmp_path, "Male", [])
    assert table.groups.tolist() == table.labels.tolist() == [1, 0, 1]
    assert table.info.groups == table.info.classes == ("Male = 0", "Male = 1")


def test_celeba_images_one_folder_deeper(tmp_path):
    data = write_faces(tmp_path)
    inner = data / "img_align_celeba" / "img_align_celeba"
    inner.mkdir()
    assert read_celeba(tmp_path).root == inner


def test_celeba_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"holds no CelebA; .*\n.*data/list_attr_celeba.csv\n"):
        read_celeba(tmp_path)
    data = write_faces(tmp_path)
    with pytest.raises(UserError, match=r"has no column 'blond_hair'; did you mean 'Blond_Hair'\?"):
        read_celeba(tmp_path, "blond_hair")
    with pytest.raises(
        UserError, match=r"list_attr_celeba.csv has no column 'Whiskers'. Its columns: image_id, Blo"
    ):
        read_celeba(tmp_path, "Blond_Hair", ["Whiskers"])
    with pytest.raises(UserError, match="The attribute 'Male' is named twice"):
        read_celeba(tmp_path, "Male", ["Male"])
    (data / "img_align_celeba").rmdir()
    with pytest.raises(UserError, match=r"holds no complete CelebA \(no img_align_celeba\)"):
        read_celeba(tmp_path)
    (data / "list_eval_partition.csv").unlink()
    with pytest.raises(UserError, match=r"\(no list_eval_partition.csv\)"):
        read_celeba(tmp_path)


@pytest.mark.parametrize(
    ("faces", "message"),
    [
        (
            {"images": ("1.jpg", "2.jpg", "1.jpg")},
            "Row 4 of .*attr.*: image_id = '1.jpg' stands in row 2 already",
        ),
        (
            {"partition": [("1.jpg", 0), ("2.jpg", 0), ("3.jpg", 1), ("2.jpg", 2)]},
            "Row 5 of .*partition.*: image_id = '2.jpg' stands in row 3 already",
        ),
        (
            {"partition": [("1.jpg", 0), ("3.jpg", 0)]},
            r"Row 3 of .*attr.*: image_id = '2.jpg' is not in .*partition.csv; add it",
        ),
        (
            {"partition": [("1.jpg", 0), ("2.jpg", 0), ("3.jpg", 3)]},
            "Row 4 of .*: partition = '3' is no split",
        ),
        (
            {"attributes": ("-1,1", "2,1", "1,1")},
            "Row 3 of .*: Blond_Hair = '2' is out of range, expected -1 or 0",
        ),
        ({"attributes": ("-1,1", "1,yes", "1,1")}, "Row 3 of .*: Male = 'yes' is not an integer"),
    ],
)
def test_celeba_wrong_rows(tmp_path, faces, message):
    write_faces(tmp_path, **faces)
    with pytest.raises(UserError, match=message):
        read_celeba(tmp_path)


@pytest.mark.parametrize("inside", ["", "dataset"])
def test_covid_sites_have_a_fixed_stratified_split(tmp_path, inside):
    write_sites(tmp_path / "dataset")
    table = read_covid(tmp_path / inside, seed=1)
    assert len(table) == 120
    assert table.names[0] == "COV_I/sub/0_0.png"
    assert table.info.groups == tuple(f"Covid = {y}, hospital = {c}" for y in range(2) for c in range(3))
    for split, count in (("train", 10), ("validation", 4), ("test", 6)):
        assert group_counts(table.groups[table.positions(split)], 6).tolist() == [count] * 6
    assert torch.equal(table.splits, read_covid(tmp_path / inside, seed=2).splits)
    assert row_of(table, 41) == f"row 3 of the list in {tmp_path / 'dataset' / 'SARS-COV-2'}"


def test_the_fixed_split_does_not_depend_on_the_order_of_rows(tmp_path):
    write_sites(tmp_path / "a")
    write_sites(tmp_path / "b", reverse=True)
    a, b = (read_covid(tmp_path / name) for name in "ab")
    assert dict(zip(a.names, a.splits.tolist(), strict=True)) == dict(
        zip(b.names, b.splits.tolist(), strict=True)
    )
    names = [f"{k}.png" for k in range(10)]
    assert covid_split(names, torch.zeros(10, dtype=torch.int64)).bincount().tolist() == [5, 2, 3]


def test_official_covid_is_drawn_by_the_seed(tmp_path):
    write_sites(tmp_path)
    first, again, other = (read_covid(tmp_path, official=True, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.splits, again.splits)
    assert not torch.equal(first.splits, other.splits)
    assert first.splits.bincount().tolist() == [60, 24, 36]
    assert first.info.groups[2] == "Covid = 0, hospital = 0"


def covid_list(root, sources=(0, 1, 2)):
    rows = [[f"{s}\\{y}\\{k}.jpg", y, s, k] for s in sources for y in range(2) for k in range(3)]
    return write_csv(root / "metadata.csv", ["filename", "label", "source_id", "split"], rows)


@pytest.mark.parametrize("inside", ["", "covid-ct"])
def test_covid_of_one_list(tmp_path, inside):
    path = covid_list(tmp_path / "covid-ct")
    table = read_covid(tmp_path / inside, "Covid", ["site"])
    assert table.source == path
    assert table.names[1] == "0/0/1.jpg"
    assert table.splits.tolist() == [0, 1, 2] * 6
    assert table.groups[::3].tolist() == [0, 3, 1, 4, 2, 5]
    assert table.info.groups[2] == "Covid = 0, site = 2"
    assert check_groups(table) == ()
    assert read_covid(tmp_path / inside, official=True).info.groups[2] == "Covid = 0, hospital = 0"


def test_covid_with_both_layouts(tmp_path):
    write_sites(tmp_path)
    covid_list(tmp_path)
    assert len(read_covid(tmp_path)) == 18
    assert len(read_covid(tmp_path, official=True)) == 120


def test_covid_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"holds no COVID CT.*\n.*COV_I/Iran.csv\n(.*\n)*.*metadata.csv"):
        read_covid(tmp_path)
    with pytest.raises(UserError, match="was given 0 confounders"):
        read_covid(tmp_path, "Covid", [])
    path = covid_list(tmp_path, sources=(0, 2))
    with pytest.raises(
        UserError, match=r"Row 8 of .*: source_id = '2' leaves a gap, as no row has 1"
    ) as caught:
        read_covid(tmp_path)
    assert str(path) in str(caught.value)
    path.unlink()
    write_sites(tmp_path)
    write_csv(tmp_path / "COV_C" / "MetaInfo.csv", ["label", "path"], [[0, "a.png"], ["?", "b.png"]])
    with pytest.raises(UserError, match=r"Row 3 of .*COV_C/MetaInfo.csv: label = '\?' is not an integer"):
        read_covid(tmp_path)


def test_any_table(tmp_path):
    path = write_listed(tmp_path)
    table = read_listed(path, "y", ["place"])
    assert (table.root, table.source) == (tmp_path, path)
    assert table.info.num_classes == 3
    assert table.info.groups[5] == "y = 1, place = 2"
    assert table.groups.tolist() == list(range(9)) * 3
    assert table.notes == ()
    assert read_listed(path, "y").info.groups == ("y = 0", "y = 1", "y = 2")
    elsewhere = read_listed(path, "y", ["place"], root=tmp_path / "images")
    assert elsewhere.root == tmp_path / "images"


def test_any_table_with_columns_of_other_names(tmp_path):
    rows = [[f"{k}.png", k % 2, "train"] for k in range(4)]
    table = read_listed(write_listed(tmp_path, ("path", "y", "split"), rows), "y")
    assert (table.names[3], table.splits.tolist()) == ("3.png", [0] * 4)
    path = write_listed(tmp_path, ("picture", "y", "split"), rows)
    with pytest.raises(
        UserError, match=r"no column of file names, expected one called img_filename, .* or image_id"
    ):
        read_listed(path, "y")


def test_any_table_mistakes(tmp_path):
    with pytest.raises(
        UserError, match=r"list.csv does not exist; name a CSV file with the columns .* y, place"
    ):
        read_listed(tmp_path / "list.csv", "y", ["place"])
    path = write_listed(tmp_path)
    with pytest.raises(UserError, match="no column 'plac'; did you mean 'place'"):
        read_listed(path, "y", ["plac"])
    with pytest.raises(UserError, match="The column 'split' is named twice"):
        read_listed(path, "y", ["split"])
    write_listed(tmp_path, rows=[["a.png", 0, 0, 0], ["b.png", -1, 0, 0]])
    with pytest.raises(UserError, match=r"Row 3 of .*: y = '-1' is out of range"):
        read_listed(path, "y")
    write_listed(tmp_path, rows=[["a.png", "?", 0, 0]])
    with pytest.raises(UserError, match=r"Row 2 of .*: y = '\?' is not an integer, expected 0, 1, 2, \.\.\."):
        read_listed(path, "y")
    write_listed(tmp_path, rows=[["a.png", 0, 0, 0], ["b.png", 1, 0, 0]])
    with pytest.raises(
        UserError, match="no training image of the groups 'y = 0, place = 1' and 'y = 1, place = 1'"
    ):
        check_groups(read_listed(path, "y", ["place"]))


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "read", "counts"),
    [
        ("cub", read_waterbirds, ([150, 16, 12, 66], [24] * 4, [40] * 4)),
        ("celebA", read_celeba, ([260, 240, 90, 31], [40, 40, 40, 20], [60, 60, 60, 30])),
        ("covid-ct", read_covid, ([24] * 6, [6] * 6, [12] * 6)),
    ],
)
def test_real_images(name, read, counts):
    folder = real_data()
    if not (folder / name).is_dir():
        pytest.skip(f"no {name} in {folder}")
    for root in (folder, folder / name):
        table = read(root)
        for split, wanted in zip(("train", "validation", "test"), counts, strict=True):
            groups = table.groups[table.positions(split)]
            assert group_counts(groups, len(table.info.groups)).tolist() == wanted
        assert check_groups(table) == ()
        assert all((table.root / name).is_file() for name in table.names)
