"""Group indices, names and counts; balanced draws; label shift, fractions and long tails."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_data import image_set
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_core.data.groups import check_groups, confounder_code, group_counts, group_index, group_names
from robust_core.data.label_shift import (
    label_shift_positions,
    legacy_generator,
    long_tailed,
    long_tailed_counts,
    long_tailed_positions,
    subsample,
    train_val_split,
    training_fraction,
    with_classes_as_groups,
)
from robust_core.data.sampling import balanced_order, sample_weights
from robust_core.data.table import ImageTable
from robust_core.data.types import DatasetInfo
from robust_core.errors import UserError

sizes_of_confounders = st.lists(st.integers(2, 4), min_size=0, max_size=3)


@settings(deadline=None, max_examples=50)
@given(classes=st.integers(1, 4), sizes=sizes_of_confounders)
def test_every_combination_has_one_index_and_its_own_name(classes, sizes):
    rows = list(itertools.product(range(classes), *map(range, sizes)))
    table = torch.tensor(rows).reshape(len(rows), 1 + len(sizes))
    groups = group_index(table[:, 0], table[:, 1:], sizes)
    assert sorted(groups.tolist()) == list(range(classes * math.prod(sizes)))
    confounders = [f"c{place}" for place in range(len(sizes))]
    names = group_names("y", confounders, classes, sizes)
    assert len(set(names)) == len(names) == len(rows)
    for row, group in zip(rows, groups.tolist(), strict=True):
        told = zip(["y", *confounders], row, strict=True)
        assert names[group] == ", ".join(f"{name} = {value}" for name, value in told)


@settings(deadline=None, max_examples=50)
@given(bits=st.lists(st.integers(0, 1), min_size=1, max_size=6), label=st.integers(0, 1))
def test_binary_confounders_are_the_published_number(bits, label):
    row, sizes = torch.tensor([bits]), [2] * len(bits)
    code = sum(2**place * bit for place, bit in enumerate(bits))
    assert confounder_code(row, sizes).item() == code
    assert group_index(torch.tensor([label]), row, sizes).item() == label * 2 ** len(bits) + code


@settings(deadline=None, max_examples=50)
@given(names=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True))
def test_official_names_differ_only_for_more_than_two_values(names):
    sizes = [2] * len(names)
    assert group_names("y", names, 2, sizes, official=True) == group_names("y", names, 2, sizes)


def test_the_third_hospital_is_called_like_the_first_only_officially():
    assert group_names("Covid", ["hospital"], 2, [3])[2] == "Covid = 0, hospital = 2"
    assert group_names("Covid", ["hospital"], 2, [3], official=True)[2] == "Covid = 0, hospital = 0"


def test_counts_include_groups_without_images():
    counts = group_counts(torch.tensor([2, 0, 2]), 4)
    assert counts.tolist() == [1, 0, 2, 0]
    assert counts.dtype == torch.int64


def table_with(train, validation, test, n_groups=4):
    groups = torch.tensor([*train, *validation, *test], dtype=torch.int64)
    splits = torch.tensor([0] * len(train) + [1] * len(validation) + [2] * len(test))
    info = DatasetInfo(
        "birds",
        "Birds",
        ("a", "b"),
        8,
        (0.5,) * 3,
        (0.5,) * 3,
        groups=tuple(f"group {k}" for k in range(n_groups)),
    )
    rows = torch.arange(len(groups)) + 2
    names = tuple(f"{k}.jpg" for k in range(len(groups)))
    return ImageTable(info, Path("root"), names, groups // 2, groups, splits, Path("list.csv"), rows)


def test_complete_groups_give_no_note():
    assert check_groups(table_with(range(4), range(4), range(4))) == ()


def test_an_empty_training_group_is_refused():
    table = table_with([0, 1, 3], range(4), range(4))
    with pytest.raises(UserError, match=r"list.csv has no training image of the group 'group 2'; add some"):
        check_groups(table)


def test_groups_absent_from_validation_and_test_are_notes():
    validation, test = check_groups(table_with(range(4), [0, 3], [0, 1, 2]))
    assert "no validation image of the groups 'group 1' and 'group 2'" in validation
    assert "no test image of the group 'group 3'" in test


def test_a_table_without_training_images_is_refused():
    with pytest.raises(UserError, match=r"list.csv lists no training image; give at least one row"):
        check_groups(table_with([], range(4), range(4)))


def test_weights_are_the_size_over_the_count():
    groups = torch.tensor([0, 0, 0, 2])
    weights = sample_weights(groups, group_counts(groups, 3))
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([4 / 3, 4 / 3, 4 / 3, 4])
    with pytest.raises(UserError, match="Image 3 belongs to group 2, which has no images"):
        sample_weights(groups, torch.tensor([3, 0, 0]))


@settings(deadline=None, max_examples=30)
@given(
    counts=st.lists(st.integers(0, 40), min_size=2, max_size=6).filter(any),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 300),
)
def test_balanced_order_is_reproducible_and_leaves_absent_groups_out(counts, seed, epoch):
    groups = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    state = torch.get_rng_state()
    order = balanced_order(groups, seed, epoch)
    assert torch.equal(order, balanced_order(groups, seed, epoch))
    assert torch.equal(state, torch.get_rng_state())
    assert order.dtype == torch.int64
    assert order.shape == (sum(counts),)
    assert 0 <= int(order.min()) <= int(order.max()) < sum(counts)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_balanced_order_draws_every_group_equally_often(seed):
    counts = torch.tensor([3498, 184, 0, 56, 1057])
    groups = torch.arange(5).repeat_interleave(counts)
    n = len(groups)
    drawn = group_counts(groups[balanced_order(groups, seed, epoch=1)], 5).double()
    expected = torch.tensor([n / 4, n / 4, 0, n / 4, n / 4], dtype=torch.float64)
    deviation = math.sqrt(n * 0.25 * 0.75)
    assert drawn[2] == 0
    assert ((drawn - expected).abs() < 5 * deviation).all()


def test_balanced_order_differs_between_epochs_and_seeds_and_within_groups():
    groups = torch.tensor([0] * 100 + [1] * 3)
    orders = [balanced_order(groups, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(orders, 2))
    assert {100, 101, 102} <= set(orders[0].tolist())
    assert len(set(orders[0].tolist()) & set(range(100))) > 20


def test_label_shift_keeps_the_asked_proportions():
    labels = torch.arange(10).repeat(50)
    positions = label_shift_positions(labels, 10, minority_fraction=0.5, imbalance_ratio=10, seed=0)
    assert torch.bincount(labels[positions]).tolist() == [50] * 5 + [5] * 5
    assert len(positions.unique()) == len(positions)
    other = label_shift_positions(labels, 10, minority_fraction=0.5, imbalance_ratio=10, seed=1)
    assert not torch.equal(positions, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"minority_fraction": 1.5}, "minority_fraction is 1.5, expected a share"),
        ({"minority_fraction": math.nan}, "minority_fraction is nan"),
        ({"imbalance_ratio": 0.5}, "imbalance_ratio is 0.5, expected a number of at least 1"),
        ({"imbalance_ratio": math.inf}, "imbalance_ratio is inf"),
        ({"classes": 4}, "Class 3 of 4 has no image"),
        ({"seed": 2**32}, "seed is 4294967296, but a published draw takes"),
    ],
)
def test_label_shift_refuses(change, message):
    arguments = {"classes": 3, "minority_fraction": 0.5, "imbalance_ratio": 2, "seed": 0} | change
    with pytest.raises(UserError, match=message):
        label_shift_positions(torch.tensor([0, 1, 2]), **arguments)


@settings(deadline=None, max_examples=50)
@given(n=st.integers(0, 60), fraction=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_published_draws_are_numpys_and_disjoint(n, fraction, seed):
    train, validation = train_val_split(n, fraction, seed)
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(n))
    assert len(validation) == int(np.round(fraction * n))
    assert torch.equal(subsample(n, fraction, seed), validation)  # the same draw
    positions = 3 * torch.arange(n)
    taken = training_fraction(positions, fraction, seed)
    assert len(taken) == len(validation)
    assert set(taken.tolist()) <= set(positions.tolist())
    assert torch.equal(taken, taken.unique())


def test_published_draws_leave_the_global_generator_alone():
    assert legacy_generator(5).rand() == np.random.RandomState(5).rand()
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    train_val_split(10, 0.5, 1)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_a_share_must_be_one():
    with pytest.raises(UserError, match=r"val_fraction is 1.5, expected a share of the 10 images"):
        train_val_split(10, 1.5, 0)


def test_long_tail_of_cifar():
    assert long_tailed_counts(5000, 10, 100).tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert long_tailed_counts(5000, 10, 1).tolist() == [5000] * 10


@settings(deadline=None, max_examples=30)
@given(
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=5),
    ratio=st.floats(1, 8),
    seed=st.integers(0, 100),
)
def test_long_tails_fall_by_the_ratio(counts, ratio, seed):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    try:
        positions = long_tailed_positions(labels, len(counts), ratio, seed)
    except UserError:
        largest = min(n * ratio ** (k / (len(counts) - 1)) for k, n in enumerate(counts))
        assert math.floor(largest + 1e-6) / ratio < 1
        return
    kept = torch.bincount(labels[positions], minlength=len(counts))
    assert torch.equal(positions, positions.unique())
    assert torch.equal(kept, long_tailed_counts(int(kept[0]), len(counts), ratio))
    assert torch.equal(positions, long_tailed_positions(labels, len(counts), ratio, seed))


def test_long_tailed_sets_are_nested_and_depend_on_the_seed():
    cifar = image_set(1000, size=2)
    small, large = long_tailed(cifar, 50, seed=1), long_tailed(cifar, 5, seed=1)
    assert set(small.indices.tolist()) < set(large.indices.tolist())
    assert torch.equal(small.images, cifar.images[small.indices])
    assert torch.bincount(small.labels)[[0, 9]].tolist() == [100, 2]
    assert not torch.equal(small.indices, long_tailed(cifar, 50, seed=2).indices)


def test_long_tails_refuse():
    cifar = image_set(50, size=2)
    with pytest.raises(
        UserError, match="imbalance ratio 100 leaves class 9 no image, as class 0 keeps 5; take"
    ):
        long_tailed(cifar, 100, seed=0)
    with pytest.raises(UserError, match=r"imbalance ratio is 0.5, expected a number of at least 1"):
        long_tailed(cifar, 0.5, seed=0)
    with pytest.raises(UserError, match="A long tail of 1 class"):
        long_tailed_counts(10, 1, 2)
    with pytest.raises(UserError, match="Class 9 of 10 has no image"):
        long_tailed(cifar.subset(torch.arange(9)), 2, seed=0)


def test_classes_as_groups():
    grouped = with_classes_as_groups(image_set(20, size=2))
    assert torch.equal(grouped.groups, grouped.labels)
    assert grouped.info.groups == grouped.info.classes
    svhn = with_classes_as_groups(image_set(10, "svhn", size=2), official=True)
    assert svhn.info.groups[3] == "Y = 3 (3)"
    assert image_set(20).info.groups is None
