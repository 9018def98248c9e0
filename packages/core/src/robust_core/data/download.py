"""Fetching official releases: checksum verified, members checked, renamed when complete."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from robust_core.data.archives import checked_members
from robust_core.data.files import plain_error
from robust_core.data.official import official_files
from robust_core.data.types import DatasetInfo
from robust_core.errors import UserError
from robust_core.storage import held

__all__ = ["download_dataset", "fetch", "unpack"]

TIMEOUT_SECONDS = 30.0
_STAGING = ".download."
_MAX_MEMBER_BYTES = 256 << 20
_MAX_TOTAL_BYTES = 2 << 30
_Log = Callable[[str], None] | None


def download_dataset(info: DatasetInfo, folder: Path, log: _Log, expected: str) -> None:
    """Fetch the official release into ``folder``; ``expected``, the tree, ends the message of a failure."""
    remotes = official_files(info.name)
    if not remotes:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        with tempfile.TemporaryDirectory(prefix=_STAGING, dir=folder) as name, held(Path(name)):
            staging = Path(name)
            for remote in remotes:
                fetch(remote.url, staging / remote.name, remote.md5, log)
                if remote.folder is not None:
                    unpack(staging / remote.name, staging / remote.folder)
            for remote in remotes:
                target = folder / (remote.folder or remote.name)
                if not target.exists():  # another process may have been faster
                    (staging / target.name).replace(target)
    except UserError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()  # leaves it if anything is in it
        raise UserError(f"{error} {expected}") from error
    except OSError as error:
        raise UserError(
            f"{info.title} could not be stored in {folder} ({plain_error(error)}); check its permissions and"
            " the free space or name another folder."
        ) from error


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed downloads left: the folders that no process holds."""
    for left in folder.glob(f"{_STAGING}*"):
        with contextlib.suppress(UserError), held(left):
            shutil.rmtree(left, ignore_errors=True)


def fetch(url: str, path: Path, md5: str, log: _Log = None) -> None:
    """Write what ``url`` gives to ``path``, complete and with the right checksum, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if log is not None:
            log(f"Downloading {url}")
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
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise UserError(
            f"Could not download {url} ({plain_error(error)}); check network and space, or put the files in"
            " place yourself."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def unpack(path: Path, folder: Path) -> None:
    """Unpack the regular files directly below ``folder.name`` in an archive to ``folder``."""
    try:
        folder.mkdir()
        with tarfile.open(path, "r|*") as archive:
            for member in checked_members(archive, path, _MAX_MEMBER_BYTES, _MAX_TOTAL_BYTES):
                parts = PurePosixPath(member.name).parts
                stream = archive.extractfile(member)
                if len(parts) == 2 and parts[0] == folder.name and stream is not None:
                    with (folder / parts[1]).open("wb") as target:
                        shutil.copyfileobj(stream, target)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"The archive {path.name} could not be unpacked ({plain_error(error)}); try again."
        ) from error
