"""Names, roots and the messages of a wrong one."""

from __future__ import annotations

import pytest
import torch
from fake_data import cifar_batch, write_cifar10, write_folders

from robust_core.data import ImageSet, dataset_info, list_datasets, load_dataset
from robust_core.errors import UserError


def test_the_names():
    assert list_datasets() == ["cifar10", "cifar100", "shapes", "shapes-grouped", "svhn", "tiny-imagenet"]
    for name in list_datasets():
        info = dataset_info(name)
        assert info.name == name
        assert len(set(info.classes)) == info.num_classes
        assert info.size == (64 if name == "tiny-imagenet" else 32)
        assert {"train", "test"} <= set(info.official_counts)
        assert len(info.mean) == len(info.std) == 3
    assert sorted(dataset_info("cifar100").classes) == list(dataset_info("cifar100").classes)


def test_an_unknown_name_and_an_unknown_split(tmp_path):
    with pytest.raises(UserError, match="Unknown dataset 'cifra10'; did you mean 'cifar10'"):
        load_dataset("cifra10", tmp_path)
    with pytest.raises(UserError, match="Unknown split of CIFAR-10 'tset'; did you mean 'test'"):
        load_dataset("cifar10", tmp_path, "tset")
    with pytest.raises(UserError, match=r"split of CIFAR-10 'validation'.*split_validation\(\)"):
        load_dataset("cifar10", tmp_path, "validation")


@pytest.mark.parametrize(
    ("name", "trees"),
    [
        ("cifar10", ["cifar-10-batches-py", "cifar10-jpeg-train.tar.xz", "train/<class>"]),
        ("cifar100", ["cifar-100-python", "cifar100-jpeg-train.tar.xz", "train/<class>"]),
        ("svhn", ["train_32x32.mat", "images/train/<digit>"]),
        ("tiny-imagenet", ["wnids.txt", "val_annotations.txt", "tiny-imagenet-200.zip"]),
    ],
)
def test_a_wrong_root_shows_the_tree(tmp_path, name, trees):
    title = dataset_info(name).title
    for root, state in ((tmp_path / "nowhere", "does not exist"), (tmp_path, f"holds no {title}")):
        with pytest.raises(UserError, match=state) as caught:
            load_dataset(name, root, download=False)
        message = str(caught.value)
        assert message.startswith(str(root))
        assert all(tree in message for tree in trees)


def test_a_named_root_that_does_not_exist_is_never_downloaded_to(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_dataset("cifar10", tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def test_the_default_root_is_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "data" / "cifar10", {"cat": 2}, "train")
    assert load_dataset("cifar10").labels.tolist() == [3, 3]


def test_another_data_set_beside_it_is_not_taken(tmp_path):
    write_folders(tmp_path, {"apple": 1}, "train")
    with pytest.raises(UserError, match="holds no CIFAR-10"):
        load_dataset("cifar10", tmp_path, download=False)


def test_image_set_moves_and_shrinks():
    dataset = load_dataset("shapes-grouped", split="validation")
    part = dataset.subset(torch.tensor([5, 3])).to("cpu")
    assert isinstance(part, ImageSet)
    assert part.indices.tolist() == [5, 3]
    assert torch.equal(part.groups, dataset.groups[[5, 3]])
    assert torch.equal(part.pixels(slice(0, 1)), dataset.images[5:6].float() / 255)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None,), r"Unknown dataset 'None'\. Known: cifar10"),
        (("cifar10", 3), "root is 3, expected the path of a folder"),
        (("cifar10", None, None), "Unknown split of CIFAR-10 'None'"),
        (("cifar10", None, ["train"]), "Unknown split of CIFAR-10"),
    ],
)
def test_what_is_no_name_and_no_path_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        load_dataset(*arguments, download=False)


def test_files_without_an_image_are_refused(tmp_path):
    for path in write_cifar10(tmp_path, [0]).iterdir():
        path.write_bytes(cifar_batch([], protocol=4))
    for split in ("train", "test"):
        with pytest.raises(UserError, match=rf"CIFAR-10 in .* hold no image of split '{split}'; get a fresh"):
            load_dataset("cifar10", tmp_path, split, download=False)
