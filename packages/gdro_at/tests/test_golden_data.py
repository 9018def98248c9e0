"""Tables, groups, splits, sampler weights, label shift and names against the official implementation."""

from __future__ import annotations

import csv
import gzip
import hashlib
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from fake_data import image_set
from grfal_golden import load

from robust_core.data import celeba
from robust_core.data.celeba import read_celeba
from robust_core.data.covid import read_covid
from robust_core.data.groups import group_counts
from robust_core.data.label_shift import (
    label_shift_positions,
    subsample,
    train_val_split,
    training_fraction,
    with_classes_as_groups,
)
from robust_core.data.sampling import balanced_order, sample_weights
from robust_core.data.table import SPLITS
from robust_core.data.waterbirds import read_waterbirds

pytestmark = pytest.mark.golden

SHORT = dict(zip(("train", "val", "test"), SPLITS, strict=True))
SITES = (
    ("COV_I", "Iran.csv", "filename"),
    ("SARS-COV-2", "MetaInfo.csv", "path"),
    ("COV_C", "MetaInfo.csv", "path"),
)


@pytest.fixture(scope="module")
def arrays():
    return load("data.npz")


@pytest.fixture(scope="module")
def facts():
    return golden.load_json("gdro_at", "data.json")


def names_with(prefix):
    return [
        name
        for name in golden.load_json("gdro_at", "data.json")
        if name.startswith(prefix) and name[-1:].isdigit()
    ]


def write_csv(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)


def same(found, wanted):
    assert np.array_equal(np.asarray(found), wanted)


def check_table(table, name, arrays, facts):
    wanted = facts[name]
    assert list(table.info.groups) == wanted["group_str"]
    assert len(table.info.groups) == wanted["n_groups"]
    assert table.info.num_classes == wanted["n_classes"]
    same(table.labels, arrays[f"{name}__y_array"])
    same(table.groups % (wanted["n_groups"] // wanted["n_classes"]), arrays[f"{name}__confounder_array"])
    same(table.groups, arrays[f"{name}__group_array"])
    same(table.splits, arrays[f"{name}__split_array"])
    for short, split in SHORT.items():
        positions, told = table.positions(split), wanted["splits"][short]
        same(positions, arrays[f"{name}__{short}__indices"])
        assert len(positions) == told["n"]
        counts = group_counts(table.groups[positions], wanted["n_groups"])
        assert counts.tolist() == told["group_counts"]
        assert torch.bincount(table.labels[positions]).tolist() == told["class_counts"]
        if short == "train":
            check_sampler(table.groups[positions], counts, told)


def check_sampler(groups, counts, told):
    weights = sample_weights(groups, counts)
    assert weights.dtype == torch.float32
    for group, wanted in enumerate(told["sampler_weight_per_group"]):
        assert weights[groups == group].double().numpy() == pytest.approx(wanted, rel=2e-7)
    drawn_as = weights.double()
    assert str(drawn_as.dtype) == told["sampler_weights_dtype"]
    share = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, groups, drawn_as) / drawn_as.sum()
    assert share.numpy() == pytest.approx(np.array(told["sampler_expected_group_fraction"]), rel=2e-7)
    assert len(balanced_order(groups, seed=0, epoch=0)) == told["sampler_num_samples"]
    assert told["sampler_replacement"] is True


def real_metadata():
    file = "metadata_original_full.csv.gz"
    folders = (golden.golden_dir("gdro_at", "data.npz"), Path(__file__).parent / "golden" / "gdro_at")
    return gzip.decompress(
        next(folder / file for folder in folders if (folder / file).is_file()).read_bytes()
    )


@pytest.fixture(scope="module")
def real_waterbirds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cub")
    inside = folder / "data" / "waterbird_complete95_forest2water2"
    inside.mkdir(parents=True)
    (inside / "metadata.csv").write_bytes(real_metadata())
    return read_waterbirds(folder)


def test_waterbirds(tmp_path, real_waterbirds, arrays, facts):
    told = facts["waterbirds"]
    table = real_waterbirds
    if "metadata_sha256" in told:
        assert hashlib.sha256(real_metadata()).hexdigest() == told["metadata_sha256"]
        assert list(table.names[:3]) == told["first_filenames"]
        assert table.notes == ()  # the official release
    else:
        columns = [arrays[f"waterbirds__{name}_array"].tolist() for name in ("y", "confounder", "split")]
        rows = [(f"{row}.jpg", *values) for row, values in enumerate(zip(*columns, strict=True))]
        path = tmp_path / "data" / "waterbird_complete95_forest2water2" / "metadata.csv"
        write_csv(path, ["img_filename", "y", "place", "split"], rows)
        table = read_waterbirds(tmp_path)
    check_table(table, "waterbirds", arrays, facts)


def test_fraction_of_the_training_split(real_waterbirds, arrays):
    drawn = training_fraction(real_waterbirds.positions("train"), 0.25, seed=5)
    same(drawn, arrays["waterbirds_real_trainfrac025_indices_seed5"])


@pytest.mark.parametrize("name", names_with("celebA_"))
def test_celeba(name, tmp_path, arrays, facts):
    columns = facts["celebA_attribute_columns"]
    images = [f"{row + 1:06d}.jpg" for row in range(len(arrays["celebA_partition"]))]
    (tmp_path / "data" / "img_align_celeba").mkdir(parents=True)
    write_csv(
        tmp_path / "data" / "list_attr_celeba.csv",
        ["image_id", *columns],
        [(image, *row) for image, row in zip(images, arrays["celebA_attributes"].tolist(), strict=True)],
    )
    partition = list(zip(images, arrays["celebA_partition"].tolist(), strict=True))
    order = np.random.default_rng(0).permutation(
        len(partition)
    )  # joined by image_id: the order must not matter
    write_csv(
        tmp_path / "data" / "list_eval_partition.csv",
        ["image_id", "partition"],
        [partition[row] for row in order],
    )
    table = read_celeba(tmp_path, facts[name]["target"], facts[name]["confounders"])
    assert list(table.names) == images
    check_table(table, name, arrays, facts)


def test_counts_of_the_official_celeba(facts):
    if "celebA_real_partition_counts" not in facts:
        pytest.skip("this set does not tell the counts of the real partition")
    told = facts["celebA_real_partition_counts"]
    assert {split: told[str(code)] for code, split in enumerate(SPLITS)} == celeba._COUNTS


@pytest.mark.parametrize("name", names_with("covid_seed"))
def test_covid(name, tmp_path, arrays, facts):
    for number, (site, file, column) in enumerate(SITES):
        labels = arrays[f"covid_labels_site{number}"].tolist()
        rows = [(label, f"a\\img{row}.png") for row, label in enumerate(labels)]
        write_csv(tmp_path / site / file, ["label", column], rows)
    table = read_covid(tmp_path, official=True, seed=int(name.removeprefix("covid_seed")))
    check_table(table, name, arrays, facts)
    starts = np.cumsum([0, *(len(arrays[f"covid_labels_site{number}"]) for number in range(2))])
    assert [table.names[start] for start in starts] == facts[name]["filenames_first_of_each_site"]
    corrected = read_covid(tmp_path)
    same(corrected.groups, arrays[f"{name}__group_array"])
    assert len(set(corrected.info.groups)) == 6


def test_label_shift(arrays, facts):
    labels = torch.from_numpy(arrays["labelshift_y"].astype(np.int64))
    for number, told in enumerate(facts["label_shift"]):
        positions = label_shift_positions(
            labels,
            len(told["counts"]),
            minority_fraction=told["minority_fraction"],
            imbalance_ratio=told["imbalance_ratio"],
            seed=told["np_random_seed"],
        )
        same(positions, arrays[f"labelshift_{number}_indices"])
        assert torch.bincount(labels[positions]).tolist() == told["counts"]


def test_splits_and_subsamples(arrays):
    rows = len(arrays["labelshift_y"])
    train, validation = train_val_split(rows, 0.1, seed=9)
    same(train, arrays["train_val_split_seed9_train"])
    same(validation, arrays["train_val_split_seed9_val"])
    same(subsample(rows, 0.3, seed=9), arrays["subsample_seed9_frac03"])


def test_names_of_classes_as_groups(facts):
    grouped = with_classes_as_groups(image_set(10, size=2), official=True)
    assert list(grouped.info.groups) == facts["group_str_cifar10_label_shift"]
