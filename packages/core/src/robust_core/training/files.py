"""Files that are either whole or not there: written beside their place, flushed, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robust_core.errors import UserError

__all__ = ["file_digest", "write_json", "write_whole"]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it: never half a file under the name.

    Raises:
        UserError: if the disk is full or the folder cannot be written; the former file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise _told(error, path) from error


def _told(error: Exception, path: Path) -> Exception:
    """Return the sentence for a write that failed; other errors unchanged."""
    number = error.errno if isinstance(error, OSError) else None
    # torch.save reports a failed write as a RuntimeError of its zip writer.
    if number in (errno.ENOSPC, errno.EDQUOT) or (number is None and "write" in str(error).lower()):
        return UserError(
            f"No space left to write '{path}'; free some, then continue with --resume (earlier files are intact)."
        )
    if number in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
        return UserError(f"Cannot write '{path}' ({os.strerror(number)}); choose another --run-dir.")
    return error


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    text = json.dumps(value, indent=2, sort_keys=False, allow_nan=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf8"))
