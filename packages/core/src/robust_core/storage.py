"""Files that are either whole or not there: written beside their place, flushed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from robust_core.errors import UserError

__all__ = [
    "file_digest",
    "flush_folder",
    "held",
    "out_of_space",
    "remove_abandoned",
    "settle",
    "told",
    "write_json",
    "write_tensors",
    "write_whole",
]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name beside ``path``, then rename it: never half a file under the name.

    Raises:
        UserError: if the disk is full or the folder cannot be written; the former file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(content.encode("utf8") if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise told(error, path) from error


def flush_folder(folder: Path) -> None:
    """Bring the names in a folder, as after a renaming, to the disk; ``OSError`` on systems that know no such thing."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files that killed processes of this machine left in ``folder`` and one level below.

    For the process that holds ``folder`` (:func:`held`): others may write into it, but not under this one's number.
    """
    for pattern in (".*.tmp", "*/.*.tmp"):
        for file in folder.glob(pattern):
            name = re.fullmatch(r"\..+\.(\d{1,9})\.tmp", file.name)
            if name is not None and not _runs_beside(int(name[1])):
                with contextlib.suppress(OSError):
                    file.unlink()


def _runs_beside(process: int) -> bool:
    """Return whether another process of this machine has the number; in a container they soon come again."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


def settle(path: Path) -> None:
    """Bring what was appended to a file, if there is one, to the disk.

    Raises:
        UserError: if the disk is full.
    """
    try:
        if path.exists():
            with path.open("ab") as stream:
                os.fsync(stream.fileno())
    except OSError as error:
        raise told(error, path) from error


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder, made if it is not there, against other processes that would hold it; a killed one lets go.

    The lock is the system's (``flock`` on the folder itself), so there is no file that could be left behind. A file
    system that has none holds nothing.

    Raises:
        UserError: if another process holds the folder, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise told(error, folder) from error
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another process is writing the run '{folder}'; wait for its end or stop it, or take another "
                "--run-dir."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EBADF, errno.EINVAL):
                raise told(error, folder) from error
        yield
    finally:
        os.close(place)


def out_of_space(error: OSError) -> bool:
    """Return whether a write failed because the disk, the quota or the largest file is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def told(error: OSError, path: Path) -> UserError:
    """Return the sentence for a write that failed."""
    if out_of_space(error):
        return UserError(
            f"No space left to write '{path}'; free some, then continue with --resume (earlier files are intact)."
        )
    return UserError(f"Cannot write '{path}' ({error.strerror}); choose another --run-dir.")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_tensors(path: Path, value: Any) -> None:
    """Write tensors and plain values for ``torch.load(..., weights_only=True)``, whole or not at all.

    Through memory: on a full disk torch's own writer fails with errors of many kinds.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_whole(path, buffer.getvalue())
