"""Class-balanced subsets and validation splits."""

from __future__ import annotations

import pytest
import torch
from fake_data import image_set
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_core.data import class_balanced_subset, split_validation
from robust_core.errors import UserError


def counts(dataset):
    return torch.bincount(dataset.labels, minlength=10)


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 60), seed=st.integers(0, 5))
def test_subset_is_balanced(count, seed):
    dataset = image_set(60, size=2)
    subset = class_balanced_subset(dataset, count, seed)
    assert len(subset) == count
    assert counts(subset).max() - counts(subset).min() <= 1
    assert len(subset.indices.unique()) == count
    assert torch.equal(subset.indices, subset.indices.sort().values)
    assert torch.equal(subset.images, dataset.images[subset.indices])


def test_subset_depends_on_the_seed_only():
    dataset = image_set(100, size=2)
    a, b, c = (class_balanced_subset(dataset, 33, seed).indices for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_odd_images_go_to_random_classes():
    dataset = image_set(100, size=2)
    firsts = {tuple(counts(class_balanced_subset(dataset, 3, seed)).tolist()) for seed in range(10)}
    assert len(firsts) > 1


def test_a_small_class_is_filled_in_by_the_others():
    labels = torch.cat([torch.zeros(2), torch.ones(30), torch.full((30,), 2)]).long()
    subset = class_balanced_subset(image_set(62, size=2, labels=labels), 20, 0)
    assert counts(subset)[0] == 2
    assert sorted(counts(subset)[1:3].tolist()) == [9, 9]


def test_validation_leaves_the_training_set():
    dataset = image_set(100, size=2)
    train, validation = split_validation(dataset, 25, 7)
    assert len(train) == 75
    assert len(validation) == 25
    assert counts(validation).max() - counts(validation).min() <= 1
    assert torch.equal(torch.cat([train.indices, validation.indices]).sort().values, torch.arange(100))
    again = split_validation(dataset, 25, 7)[1]
    assert torch.equal(again.indices, validation.indices)


def test_no_validation():
    dataset = image_set(20, size=2)
    train, validation = split_validation(dataset, 0, 0)
    assert torch.equal(train.indices, dataset.indices)
    assert len(validation) == 0


def test_a_subset_of_a_subset_keeps_its_positions():
    dataset = image_set(100, size=2)
    train, _ = split_validation(dataset, 50, 0)
    subset = class_balanced_subset(train, 10, 0)
    assert torch.equal(subset.images, dataset.images[subset.indices])


@pytest.mark.parametrize("count", [0, -1, 21])
def test_impossible_counts_are_refused(count):
    with pytest.raises(UserError, match=f"--train-subset {count} is not possible: CIFAR-10 has 20 images"):
        class_balanced_subset(image_set(20, size=2), count, 0)


def test_validation_must_leave_something():
    with pytest.raises(UserError, match="leaves none of CIFAR-10's 20 training images"):
        split_validation(image_set(20, size=2), 20, 0)
    with pytest.raises(UserError, match="--validation 21 is not possible"):
        split_validation(image_set(20, size=2), 21, 0)
