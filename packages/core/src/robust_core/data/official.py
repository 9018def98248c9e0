"""Where the official releases are and what their files' MD5 sums are, as torchvision knows them too."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CIFAR_FOLDERS", "OFFICIAL_MD5", "Remote", "official_files"]

CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}

# data set -> split -> file -> MD5
OFFICIAL_MD5: dict[str, dict[str, dict[str, str]]] = {
    "cifar10": {
        "train": {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
    },
    "cifar100": {
        "train": {"train": "16019d7e3df5f24257cddd939b257f8d"},
        "test": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    },
    "svhn": {
        "train": {"train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373"},
        "test": {"test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3"},
    },
}


class Remote(NamedTuple):
    """A file of an official release; ``folder`` is what unpacking it makes."""

    url: str
    name: str
    md5: str
    folder: str | None = None


_CIFAR = "https://www.cs.toronto.edu/~kriz"
_SVHN = "http://ufldl.stanford.edu/housenumbers"
_REMOTES = {
    "cifar10": [("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")],
    "cifar100": [("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85")],
}


def official_files(name: str) -> list[Remote]:
    """Return what has to be fetched for a data set; empty where the release is not ours to fetch."""
    if name in _REMOTES:
        return [Remote(f"{_CIFAR}/{file}", file, md5, CIFAR_FOLDERS[name]) for file, md5 in _REMOTES[name]]
    if name == "svhn":
        files = OFFICIAL_MD5["svhn"]["train"] | OFFICIAL_MD5["svhn"]["test"]
        return [Remote(f"{_SVHN}/{file}", file, md5) for file, md5 in files.items()]
    return []
