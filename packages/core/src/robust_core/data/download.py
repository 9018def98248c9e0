"""Fetching official releases: to a temporary file, checksum verified, members checked, renamed when complete."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from robust_core.data.archives import checked_members
from robust_core.data.cifar import CIFAR_FOLDERS
from robust_core.data.files import plain_error
from robust_core.data.svhn import svhn_file
from robust_core.data.types import DatasetInfo
from robust_core.errors import UserError

__all__ = ["Remote", "download_dataset", "fetch", "official_files", "unpack"]

TIMEOUT_SECONDS = 30.0
_MAX_MEMBER_BYTES = 256 << 20
_MAX_TOTAL_BYTES = 2 << 30
_Log = Callable[[str], None] | None


class Remote(NamedTuple):
    """A file of an official release: where it is, its name, its MD5, and the folder that unpacking it makes."""

    url: str
    name: str
    md5: str
    folder: str | None = None


def official_files(name: str, split: str) -> list[Remote]:
    """Return what has to be fetched for a split; empty where the release is not ours to fetch."""
    if name in CIFAR_FOLDERS:
        from torchvision.datasets import CIFAR10, CIFAR100

        source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
        return [Remote(source.url, source.filename, source.tgz_md5, CIFAR_FOLDERS[name])]
    return [Remote(*svhn_file(split))] if name == "svhn" else []


def download_dataset(info: DatasetInfo, folder: Path, split: str, log: _Log, expected: str) -> None:
    """Fetch the official release into ``folder``; ``expected`` (the tree) ends the message when that fails."""
    for remote in official_files(info.name, split):
        try:
            fetch(remote.url, folder / remote.name, remote.md5, log)
        except UserError as error:
            raise UserError(f"{error} {expected}") from error
        if remote.folder is not None:
            unpack(folder / remote.name, folder / remote.folder)
            (folder / remote.name).unlink()


def fetch(url: str, path: Path, md5: str, log: _Log = None) -> None:
    """Write what ``url`` gives to ``path``, complete and with the right checksum, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if log is not None:
            log(f"Downloading {url} to {path.parent}")
        digest = hashlib.md5(usedforsecurity=False)
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as source, temporary.open("wb") as target:
            size = int(source.headers.get("Content-Length") or -1)
            received = 0
            while block := source.read(1 << 20):
                digest.update(block)
                target.write(block)
                received += len(block)
        if received < size:
            raise http.client.HTTPException(f"{received:,} of {size:,} bytes arrived")
        if digest.hexdigest() != md5:
            raise UserError(
                f"The download of {url} has the MD5 {digest.hexdigest()}, expected {md5}; it was removed:"
                " try again or get the file elsewhere."
            )
        temporary.replace(path)
    except (OSError, http.client.HTTPException) as error:  # URLError, timeouts and a full disk are OSErrors
        raise UserError(
            f"Could not download {url} to {path.parent} ({plain_error(error)}); check network and space or put the"
            " files there yourself."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def unpack(path: Path, folder: Path) -> None:
    """Unpack the regular files below ``folder.name`` in an archive to ``folder``, complete or not at all."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in checked_members(archive, path, _MAX_MEMBER_BYTES, _MAX_TOTAL_BYTES):
                parts = PurePosixPath(member.name).parts
                stream = archive.extractfile(member)
                if len(parts) != 2 or parts[0] != folder.name or stream is None:
                    continue
                with (temporary / parts[1]).open("wb") as target:
                    shutil.copyfileobj(stream, target)
        temporary.chmod(0o755)  # mkdtemp gives 0700
        temporary.replace(folder)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"Could not unpack {path} ({plain_error(error)}); remove it and try again."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
