"""Decoded pixels on disk, whole or not there: images one after the other, then a footer that vouches for them.

A file is named by what it holds (:func:`content_key`), so that a valid file under a name is the right one, whoever
wrote it. A memo beside it spares later runs the hashing of files whose size and time of change are as they were.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor

from robust_core.errors import UserError
from robust_core.image_files import plain_error
from robust_core.storage import flush_folder, out_of_space, write_whole

__all__ = ["FileState", "PixelFile", "content_key", "locked", "read_memo", "write_memo", "write_pixels"]

VERSION = 1
MAGIC = b"robust-core decoded images\n"
_FOOTER_LIMIT = 1 << 26


class FileState(NamedTuple):
    """What tells at a glance whether a file has changed: bytes and time of change in ns; -1 and 0: missing."""

    size: int
    changed: int


def content_key(pipeline_key: str, files: Iterable[tuple[str, int, str]]) -> str:
    """Return the SHA-256 of all that decides the pixels: version, pipeline, (name, bytes, SHA-256) of each file."""
    digest = hashlib.sha256(json.dumps([VERSION, pipeline_key]).encode("utf8"))
    for file in files:
        digest.update(b"\n" + json.dumps(file).encode("utf8"))
    return digest.hexdigest()


@dataclass(frozen=True)
class PixelFile:
    """A decoded file on disk: ``count`` images uint8 ``(3, H, W)``; ``left_out`` tells why positions have none."""

    path: Path
    key: str
    count: int
    size: tuple[int, int]
    left_out: dict[int, str]

    @classmethod
    def open(cls, path: Path, key: str) -> PixelFile | None:
        """Return what lies at ``path`` if it is whole and holds what ``key`` stands for, else None."""
        try:
            with path.open("rb") as stream:
                length = stream.seek(0, os.SEEK_END)
                tail = len(MAGIC) + 8 + 32
                stream.seek(max(length - tail, 0))
                end = stream.read()
                footer_length = int.from_bytes(end[:8], "little")
                if not end.endswith(MAGIC) or not 0 < footer_length < min(length, _FOOTER_LIMIT):
                    return None
                stream.seek(length - tail - footer_length)
                text = stream.read(footer_length)
            if hashlib.sha256(text).digest() != end[8:40]:
                return None
            footer = json.loads(text)
            left_out = {int(position): str(why) for position, why in footer["left_out"].items()}
            found = cls(path, footer["key"], footer["count"], (footer["height"], footer["width"]), left_out)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        whole = length == found.pixel_bytes + footer_length + tail
        return found if whole and found.key == key else None

    @property
    def pixel_bytes(self) -> int:
        """Bytes of all images."""
        return self.count * 3 * self.size[0] * self.size[1]

    def mapped(self) -> Tensor:
        """Return the images, uint8 ``(N, 3, H, W)``: pages of the file, read as they are touched, written never."""
        flat = torch.from_file(str(self.path), shared=False, size=self.pixel_bytes, dtype=torch.uint8)
        return flat.view(self.count, 3, *self.size)


def write_pixels(
    path: Path,
    key: str,
    size: tuple[int, int],
    results: Iterable[bytes | str],
    expected: int,
    stem: str,
) -> PixelFile:
    """Write decoded images (pixels, or why there are none) to ``path``, whole or not at all.

    ``expected`` is the number of results, for a look at the free space before anything is decoded; ``stem`` begins the
    names of temporary files, so that :func:`locked` may clear them away.

    Raises:
        UserError: if the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{stem}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    left_out: dict[int, str] = {}
    checksum = count = 0
    try:
        needed = expected * 3 * size[0] * size[1]
        if shutil.disk_usage(path.parent).free < needed:
            raise _no_space(path, f" ({needed / 1e9:.1f} GB are needed)")
        with temporary.open("wb") as stream:
            for position, pixels in enumerate(results):
                if isinstance(pixels, str):
                    left_out[position] = pixels
                    continue
                stream.write(pixels)
                checksum = zlib.crc32(pixels, checksum)
                count += 1
            footer = {
                "key": key,
                "count": count,
                "height": size[0],
                "width": size[1],
                "left_out": left_out,
            }
            text = json.dumps(footer).encode("utf8")
            stream.write(text + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + MAGIC)
            stream.flush()
            os.fsync(stream.fileno())
        written = PixelFile.open(temporary, key)
        if written is None or _checksum(temporary, written.pixel_bytes) != checksum:
            raise OSError(errno.EIO, "what was written reads differently")
        temporary.replace(path)
        with contextlib.suppress(OSError):  # some systems know no such thing
            flush_folder(path.parent)
    except OSError as error:
        raise _told(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return PixelFile(path, key, count, size, left_out)


def _checksum(path: Path, length: int) -> int:
    checksum = 0
    with path.open("rb") as stream:
        while length and (block := stream.read(min(length, 1 << 20))):
            checksum = zlib.crc32(block, checksum)
            length -= len(block)
    return checksum


def _no_space(path: Path, more: str = "") -> UserError:
    return UserError(
        f"No space left for the decoded images in '{path.parent}'{more}; free some, or name another folder with"
        " --cache-dir."
    )


def _told(error: OSError, path: Path) -> UserError:
    if out_of_space(error):
        return _no_space(path)
    return UserError(
        f"The decoded images cannot be written to '{path.parent}' ({plain_error(error)}); name another folder with"
        " --cache-dir."
    )


@contextlib.contextmanager
def locked(folder: Path, stem: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of ``stem`` in ``folder``; ``on_wait`` is called if another process has it.

    What an earlier holder left unfinished is cleared away. On disks without locks nothing is held.
    """
    with (folder / f"{stem}.lock").open("ab") as stream:
        if _take(stream, on_wait):
            for rest in folder.glob(f".{stem}.*.tmp"):
                with contextlib.suppress(OSError):
                    rest.unlink()
        yield


def _take(stream: IO[bytes], on_wait: Callable[[], None]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait()
        fcntl.flock(stream, fcntl.LOCK_EX)
    except OSError:  # a disk that knows no locks
        return False
    return True


def read_memo(path: Path) -> tuple[str, dict[str, tuple[FileState, str]]]:
    """Return the name of the pixel file that the memo was written for, and state and SHA-256 of each file by name.

    A memo that is missing or damaged says nothing.
    """
    try:
        memo = json.loads(path.read_text(encoding="utf8"))
        files = {
            str(name): (FileState(int(size), int(changed)), str(digest))
            for name, size, changed, digest in memo["files"]
        }
        return str(memo["pixels"]), files
    except (OSError, ValueError, KeyError, TypeError):
        return "", {}


def write_memo(
    path: Path, pixels: str, names: Sequence[str], states: Sequence[FileState], digests: Sequence[str]
) -> None:
    """Write a memo, whole or, where the folder or the disk has no place for it, not at all."""
    files = [[name, *state, digest] for name, state, digest in zip(names, states, digests, strict=True)]
    with contextlib.suppress(UserError):
        write_whole(path, json.dumps({"version": VERSION, "pixels": pixels, "files": files}))
