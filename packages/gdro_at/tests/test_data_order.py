"""The order of a table's images, in which the first ones are a fair sample, and what the digests tell of it."""

from __future__ import annotations

import pytest
import torch
from expt_runs import WATERBIRDS
from published_folders import COUNTS, write_waterbirds

from gdro_at.cli import training_script
from gdro_at.data import fair_order, load_groups
from gdro_at.validation import first_of_each_group

SIZES = (2255, 2255, 642, 642)
"""Waterbirds' test split."""
GROUPS = torch.repeat_interleave(torch.arange(4), torch.tensor(SIZES))


def loaded(*words):
    script = training_script()
    return load_groups(script.resolve(script.parse([str(word) for word in words])[0])[0], lambda _: None)


def test_the_first_images_have_the_proportions_of_the_groups():
    order = fair_order(GROUPS, 0)
    assert order.sort().values.tolist() == list(range(len(GROUPS)))
    shares = torch.tensor(SIZES) / len(GROUPS)
    for count in (1, 2, 50, 200, 1000, len(GROUPS)):
        found = torch.bincount(GROUPS[order[:count]], minlength=4)
        assert (found - count * shares).abs().max() < 1


def test_within_a_group_the_order_is_random_and_that_of_the_seed():
    first = fair_order(GROUPS, 0)
    assert torch.equal(first, fair_order(GROUPS, 0))
    assert not torch.equal(first, fair_order(GROUPS, 1))
    members = first[GROUPS[first] == 0][:200].float()
    # a list puts one species after another: the first ones shall come from all over it
    assert float(members.mean()) == pytest.approx(2255 / 2, rel=0.15)
    assert float(members.max() - members.min()) > 0.9 * 2255


@pytest.mark.parametrize("flag", ["--test_images", "--suite_images", "--sweep_images"])
def test_a_limit_orders_the_test_split_of_a_table(birds, flag):
    words = [*WATERBIRDS, birds, "--test_images", "0"]
    _, as_listed, plain = loaded(*words)
    _, validation, test = loaded(*words, flag, "6")
    assert plain.indices.tolist() == list(range(len(plain)))
    assert test.indices.tolist() == fair_order(plain.groups, 0).tolist()
    for name in ("images", "labels", "groups"):
        assert torch.equal(getattr(test, name), getattr(plain, name)[test.indices])
    assert torch.equal(validation.indices, as_listed.indices)
    assert validation.digest == as_listed.digest
    other = loaded(*words, flag, "6", "--subset_seed", "5")[2]
    assert not torch.equal(other.indices, test.indices)
    assert len({plain.digest, test.digest, other.digest}) == 3
    # --seed draws no images
    assert torch.equal(loaded(*words, flag, "6", "--seed", "5")[2].indices, test.indices)


def test_a_limit_orders_the_validation_split_and_takes_as_many_of_each_group(tmp_path):
    root = write_waterbirds(tmp_path / "cub", (COUNTS[0], (9, 3, 2, 5), COUNTS[2]))
    words = [*WATERBIRDS, root, "--test_images", "0", "--validation_images"]
    _, as_listed, plain = loaded(*words, "0")
    _, validation, test = loaded(*words, "8")
    assert torch.equal(test.indices, plain.indices)
    assert torch.bincount(first_of_each_group(validation, 8).groups).tolist() == [2, 2, 2, 2]
    taken = first_of_each_group(validation, 8).indices
    assert not torch.equal(taken.sort().values, first_of_each_group(as_listed, 8).indices)


def test_images_in_random_order_stay_as_they_are(folders):
    words = ["-d", "CIFAR10", "--root_dir", folders, "--validation", "20"]
    plain, limited = loaded(*words), loaded(*words, "--test_images", "7", "--validation_images", "9")
    for one, other in zip(plain, limited, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert one.digest == other.digest


def test_pixels_that_the_seed_moves_are_other_data(folders):
    words = ["-d", "CIFAR10", "-s", "label_shift_step", "--minority_fraction", "0.5"]
    words += ["--imbalance_ratio", "2", "--root_dir", folders, "--official", "--val_fraction", "0.2"]
    found = {loaded(*words, *more)[2].digest for more in ([], ["--seed", "1"], ["--augment_data"])}
    assert len(found) == 3
