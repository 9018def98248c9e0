"""CIFAR as its authors pack it, and pickles that are not data."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from fake_data import cifar_batch, write_cifar10

from robust_core.data import load_dataset
from robust_core.data.cifar import load_plain_pickle
from robust_core.errors import UserError


@pytest.mark.parametrize("where", ["parent", "dataset folder", "cifar-10-batches-py", "above"])
def test_cifar10_in_the_official_order(tmp_path, where):
    base = tmp_path / "cifar10" if where == "above" else tmp_path
    folder = write_cifar10(base, [3, 1, 2])
    root = folder if where == "cifar-10-batches-py" else tmp_path
    train = load_dataset("cifar10", root, download=False)
    assert train.labels.tolist() == [3, 1, 2] * 5
    assert train.images[:, 0, 0, 0].tolist() == [0, 1, 2] * 5
    assert train.notes == ("CIFAR-10: 15 training images, not the official release",)
    test = load_dataset("cifar10", root, "test", download=False)
    assert test.labels.tolist() == [3, 1, 2]
    assert test.digest != train.digest
    assert len(test.digest) == 64


def test_channels_come_first(tmp_path):
    folder = write_cifar10(tmp_path, [0])
    data = np.arange(3072).astype(np.uint8)[None]
    (folder / "test_batch").write_bytes(pickle.dumps({"data": data, "labels": [7]}))
    images = load_dataset("cifar10", tmp_path, "test", download=False).images
    assert np.array_equal(images.numpy(), data.reshape(1, 3, 32, 32))


def test_fortran_order_is_understood(tmp_path):
    folder = write_cifar10(tmp_path, [0])
    data = np.asfortranarray(np.random.default_rng(0).integers(0, 256, (4, 3072)).astype(np.uint8))
    (folder / "test_batch").write_bytes(pickle.dumps({"data": data, "labels": [1, 2, 3, 4]}, 2))
    images = load_dataset("cifar10", tmp_path, "test", download=False).images
    assert np.array_equal(images.numpy(), data.reshape(4, 3, 32, 32))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol(tmp_path, protocol):
    folder = write_cifar10(tmp_path, [0])
    (folder / "test_batch").write_bytes(cifar_batch([9, 8], protocol=protocol))
    assert load_dataset("cifar10", tmp_path, "test", download=False).labels.tolist() == [9, 8]


def test_python_2_wrote_the_official_files(tmp_path):
    # protocol 2 as Python 2 writes it: str opcodes for keys and pixels
    data = bytes(3072)
    pickled = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85"
        b"U\x01b\x87Rq\x05(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + (3072).to_bytes(4, "little") + data + b"tb"
        b"U\x06labelsq\x08]q\x09K\x06au."
    )
    folder = write_cifar10(tmp_path, [0])
    (folder / "test_batch").write_bytes(pickled)
    dataset = load_dataset("cifar10", tmp_path, "test", download=False)
    assert dataset.labels.tolist() == [6]
    assert dataset.images.sum() == 0


def test_cifar100_uses_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / split).write_bytes(cifar_batch([99, 0], "fine_labels"))
    dataset = load_dataset("cifar100", tmp_path, download=False)
    assert dataset.labels.tolist() == [99, 0]
    assert dataset.info.classes[99] == "worm"


class Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize(
    "thing",
    [Harmful(), {"data": Harmful()}, torch.nn.Linear(1, 1), np.float64(1.0)],
    ids=["call", "nested call", "module", "scalar"],
)
def test_a_pickle_that_is_not_data_is_refused(tmp_path, thing):
    folder = write_cifar10(tmp_path, [0])
    (folder / "test_batch").write_bytes(pickle.dumps(thing))
    with pytest.raises(UserError, match="test_batch was refused: it asks to run") as caught:
        load_dataset("cifar10", tmp_path, "test", download=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated or corrupt"),
        (b"no pickle", "truncated or corrupt"),
        (cifar_batch([1, 2])[:-50], "truncated or corrupt"),
        (pickle.dumps([1, 2]), "does not hold a batch of CIFAR-10"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}), "does not hold a batch"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.float32), "labels": [1]}), "not plain bytes"),
        (pickle.dumps({"data": np.array([object()]), "labels": [1]}), "asks to run"),
        (cifar_batch([1, 10]), "Label 10 in .* is out of range; CIFAR-10 has the labels 0 to 9"),
        (cifar_batch([-1]), "Label -1 in"),
    ],
)
def test_a_damaged_batch_is_named(tmp_path, content, message):
    folder = write_cifar10(tmp_path, [0])
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_dataset("cifar10", tmp_path, "test", download=False)
    assert "test_batch" in str(caught.value)


def test_missing_batches(tmp_path):
    folder = write_cifar10(tmp_path, [0, 1])
    (folder / "test_batch").unlink()
    (folder / "data_batch_5").unlink()
    assert len(load_dataset("cifar10", tmp_path, download=False)) == 8
    with pytest.raises(UserError, match="holds no test_batch"):
        load_dataset("cifar10", tmp_path, "test", download=False)


def test_plain_data_pass(tmp_path):
    assert load_plain_pickle(pickle.dumps({"a": [1, b"x", "y", None, 2.5]}), tmp_path) == {
        "a": [1, b"x", "y", None, 2.5]
    }
