"""Class folders, archives, SVHN and Tiny-ImageNet in small."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_data import encoded, svhn_file, write_archive, write_folders, write_tiny_imagenet
from PIL import Image
from scipy.io import savemat

from robust_core.data import dataset_info, load_dataset
from robust_core.data.files import check_labels, class_order, digest_of, interleaved
from robust_core.errors import UserError

COUNTS = {"airplane": 3, "automobile": 1, "bird": 2}


def load(name, root, split="train"):
    return load_dataset(name, root, split, download=False)


def write_svhn(base, labels, split="train"):
    base.mkdir(exist_ok=True)
    (base / f"{split}_32x32.mat").write_bytes(svhn_file(labels))


def sixteen_bits():
    stream = io.BytesIO()
    Image.new("I;16", (32, 32)).save(stream, "PNG")
    return stream.getvalue()


def test_order_helpers():
    assert class_order(["10.png", "9.png", "a.png", "0008.png"]) == ["0008.png", "9.png", "10.png", "a.png"]
    assert interleaved([2, 0, 3]) == [(0, 0), (2, 0), (0, 1), (2, 1), (2, 2)]
    assert digest_of([("a", "1f")]) == "1f"
    assert digest_of([("a", "1"), ("b", "2")]) == digest_of([("b", "2"), ("a", "1")])


def test_check_labels():
    info = dataset_info("svhn")
    assert check_labels(torch.tensor([0, 9]), info, "x").tolist() == [0, 9]
    with pytest.raises(UserError, match="Label 11 in x is out of range; SVHN has the labels 0 to 9"):
        check_labels(torch.tensor([0, 11]), info, "x")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
@pytest.mark.parametrize("inside", ["", "cifar10"])
def test_class_folders_come_in_turn(tmp_path, suffix, inside):
    write_folders(tmp_path / inside, COUNTS, "train", suffix)
    write_folders(tmp_path / inside, {"airplane": 1}, "test", suffix)
    (tmp_path / inside / "train" / "airplane" / "readme.txt").write_text("not an image")
    dataset = load("cifar10", tmp_path)
    assert dataset.labels.tolist() == [0, 1, 2, 0, 2, 0]
    assert dataset.images[:, 0, 0, 0].tolist() == [0, 10, 20, 1, 21, 2]
    form = "as image files" if suffix == ".png" else "as JPEG"
    assert dataset.notes == (f"CIFAR-10: 6 training images {form}, not the official release",)
    assert len(load("cifar10", tmp_path, "test")) == 1


def test_digest_follows_the_files(tmp_path):
    write_folders(tmp_path, COUNTS, "train")
    before = load("cifar10", tmp_path).digest
    assert before == load("cifar10", tmp_path).digest
    (tmp_path / "train" / "bird" / "0.png").write_bytes(encoded(99))
    assert load("cifar10", tmp_path).digest != before


def test_fine_label_names_are_checked(tmp_path):
    write_folders(tmp_path, {"apple": 1, "aquarium_fish": 1, "worm": 1}, "train")
    assert load("cifar100", tmp_path).labels.tolist() == [0, 1, 99]
    names = list(dataset_info("cifar100").classes)
    (tmp_path / "fine_label_names.txt").write_text("\n".join(names))
    assert load("cifar100", tmp_path).labels.tolist() == [0, 1, 99]
    (tmp_path / "fine_label_names.txt").write_text("\n".join(reversed(names)))
    with pytest.raises(UserError, match=r"fine_label_names.txt does not list CIFAR-100's 100 classes .*worm"):
        load("cifar100", tmp_path)


def test_a_missing_split_an_unknown_class_and_no_image(tmp_path):
    write_folders(tmp_path, COUNTS, "train")
    with pytest.raises(UserError, match=r"The folder .*test is missing"):
        load("cifar10", tmp_path, "test")
    (tmp_path / "test" / "airplane").mkdir(parents=True)
    with pytest.raises(UserError, match=r"No images in .*test; expected <class>"):
        load("cifar10", tmp_path, "test")
    (tmp_path / "train" / "zebra").mkdir()
    with pytest.raises(
        UserError, match=r"class folder 'zebra' in .* is no class of CIFAR-10; expected airplane"
    ):
        load("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(1)[:-30], "cannot be used"),
        (encoded(1, "JPEG")[:300], "cannot be used"),
        (b"", r"cannot be used \(it is empty\)"),
        (encoded(1)[:40] + b"\xff\xff" + encoded(1)[42:], "cannot be used"),
        (encoded(1, "GIF"), r"cannot be used \(it is GIF, but only PNG, JPEG and BMP are accepted\)"),
        (sixteen_bits(), r"cannot be used \(it has more than 8 bits per channel"),
        (encoded(1, size=31), "has 31x31 pixels, expected 32x32"),
    ],
    ids=["cut PNG", "cut JPEG", "empty", "flipped bytes", "GIF", "16 bits", "size"],
)
def test_a_bad_image_is_named(tmp_path, content, message):
    write_folders(tmp_path, COUNTS, "train")
    (tmp_path / "train" / "bird" / "1.png").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load("cifar10", tmp_path)
    assert str(tmp_path / "train" / "bird" / "1.png") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert " at 0x" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [(Path.mkdir, "Is a directory"), (lambda path: path.symlink_to("nowhere"), "No such file or directory")],
    ids=["folder", "dangling link"],
)
def test_what_is_no_file_is_named_once(tmp_path, make, message):
    write_folders(tmp_path, COUNTS, "train")
    odd = tmp_path / "train" / "bird" / "9.png"
    make(odd)
    with pytest.raises(UserError, match=message) as caught:
        load("cifar10", tmp_path)
    assert str(caught.value) == f"The image {odd} cannot be read ({message}); replace or remove it."


def test_an_archive_comes_in_turn(tmp_path):
    folder = tarfile.TarInfo("train/airplane")
    folder.type = tarfile.DIRTYPE
    members = [(f"train/airplane/{k}.jpg", encoded(k, "JPEG")) for k in (10, 9)]
    members += [("train/bird/0.jpg", encoded(50, "JPEG")), ("train/bird/list.txt", b"no image")]
    path = write_archive(tmp_path / "cifar10-jpeg-train.tar.xz", [folder, *members])
    dataset = load("cifar10", tmp_path)
    assert dataset.labels.tolist() == [0, 2, 0]
    assert dataset.images[:, 0, 0, 0].tolist() == [9, 50, 10]
    assert dataset.notes == ("CIFAR-10: 3 training images as JPEG, not the official release",)
    with pytest.raises(UserError, match=r"cifar10-jpeg-test.tar.xz is missing"):
        load("cifar10", tmp_path, "test")
    write_archive(path, [*members, ("train/bird/1.jpg", encoded(3, "JPEG")[:200])])
    with pytest.raises(UserError, match=r"image .*tar.xz:train/bird/1.jpg cannot be used"):
        load("cifar10", tmp_path)


def special(kind, name="train/bird/0.jpg", size=0):
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, size, "/etc/passwd"
    return member


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (special(tarfile.SYMTYPE), "not a regular file"),
        (special(tarfile.LNKTYPE), "not a regular file"),
        (special(tarfile.CHRTYPE), "not a regular file"),
        (("/train/bird/0.jpg", b""), "leads outside"),
        (("train/../../bird.jpg", b""), "leads outside"),
        (("train\\..\\bird.jpg", b""), "leads outside"),
        (("train/bird/0.jpg", bytes(9 << 20)), "too large"),
        (("test/bird/0.jpg", b""), "expected train/<class>/<image>"),
        (("train/bird/deep/0.jpg", b""), "expected train/<class>/<image>"),
    ],
)
def test_an_archive_with_a_bad_member_is_refused(tmp_path, member, message):
    path = write_archive(tmp_path / "cifar10-jpeg-train.tar.xz", [member])
    with pytest.raises(UserError, match=message) as caught:
        load("cifar10", tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [0, 30, -20])
def test_a_cut_archive_is_named(tmp_path, keep):
    path = tmp_path / "cifar10-jpeg-train.tar.xz"
    noise = np.random.default_rng(0).bytes(5000)
    write_archive(path, [("train/bird/0.jpg", encoded(1, "JPEG")), ("train/bird/more.txt", noise)])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="is truncated or corrupt") as caught:
        load("cifar10", tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("inside", ["", "svhn"])
def test_svhn_ten_stands_for_zero(tmp_path, inside):
    write_svhn(tmp_path / inside, [10, 1, 9])
    dataset = load("svhn", tmp_path)
    assert dataset.labels.tolist() == [0, 1, 9]
    assert dataset.images[:, 2, 0, 1].tolist() == [0, 1, 2]
    assert dataset.images.sum() == 3
    assert dataset.notes == ("SVHN: 3 training images, not the official release",)
    with pytest.raises(UserError, match=r"test_32x32.mat is missing"):
        load("svhn", tmp_path, "test")


def test_svhn_as_digit_folders(tmp_path):
    write_folders(tmp_path / "images", {"0": 1, "7": 2}, "train")
    assert load("svhn", tmp_path).labels.tolist() == [0, 7, 7]


def test_damaged_svhn(tmp_path):
    write_svhn(tmp_path, [1, 11])
    with pytest.raises(UserError, match=r"Label 11 in .*train_32x32.mat is out of range"):
        load("svhn", tmp_path)
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"train_32x32.mat is truncated or corrupt"):
        load("svhn", tmp_path)
    savemat(path, {"X": np.zeros((32, 32, 2)), "y": np.ones((2, 1))})
    with pytest.raises(UserError, match=r"train_32x32.mat holds X of shape \(32, 32, 2\) and type float64"):
        load("svhn", tmp_path)
    savemat(path, {"z": 1})
    with pytest.raises(UserError, match="truncated or corrupt"):
        load("svhn", tmp_path)


@pytest.mark.parametrize("root", ["parent", "folder"])
def test_tiny_imagenet(tmp_path, root):
    folder = write_tiny_imagenet(tmp_path)
    root = tmp_path if root == "parent" else folder
    train = load("tiny-imagenet", root)
    assert train.info.classes == ("n01", "n02", "n03")
    assert train.info.num_classes == 3
    assert train.images.shape == (6, 3, 64, 64)
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert train.images[:, 0, 0, 0].tolist() == [0, 10, 20, 1, 11, 21]
    assert train.notes == ("Tiny-ImageNet: 6 training images of 3 classes, not the official release",)
    test, validation = load("tiny-imagenet", root, "test"), load("tiny-imagenet", root, "validation")
    assert test.images[:, 1, 0, 0].tolist() == [100, 110, 120, 101, 111, 121]
    assert torch.equal(test.images, validation.images)
    assert "official validation split" in test.notes[1]
    assert not train.info.own_validation


def test_damaged_tiny_imagenet(tmp_path):
    folder = write_tiny_imagenet(tmp_path)
    bad = folder / "train" / "n02" / "images" / "n02_1.JPEG"
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(UserError, match=r"n02_1.JPEG cannot be used"):
        load("tiny-imagenet", tmp_path)
    (folder / "val" / "images" / "val_0.JPEG").unlink()
    with pytest.raises(UserError, match=r"image .*val_0.JPEG cannot be read"):
        load("tiny-imagenet", tmp_path, "test")
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn09\n")
    with pytest.raises(
        UserError, match=r"Line 1 of .*val_annotations.txt is 'val_0.JPEG.*one of the 3 classes"
    ):
        load("tiny-imagenet", tmp_path, "test")
    (folder / "val" / "val_annotations.txt").write_text("")
    with pytest.raises(UserError, match="No images of split 'test'"):
        load("tiny-imagenet", tmp_path, "test")
    (folder / "val" / "val_annotations.txt").unlink()
    with pytest.raises(UserError, match=r"val_annotations.txt cannot be read"):
        load("tiny-imagenet", tmp_path, "test")
    (folder / "wnids.txt").write_text("n01\nn04\n")
    with pytest.raises(UserError, match=r"folder .*n04.images of a class in wnids.txt is missing"):
        load("tiny-imagenet", tmp_path)
    (folder / "wnids.txt").write_text("n01\nn01\n")
    with pytest.raises(UserError, match="list each class once"):
        load("tiny-imagenet", tmp_path)
