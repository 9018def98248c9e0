"""Packed archives of class folders of images, read in memory: ``<name>-jpeg-{train,test}.tar.xz``.

The members are checked before they are read, and nothing is written to disk.
"""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from robust_core.data.files import IMAGE_SUFFIXES, Raw, plain_error
from robust_core.data.folders import from_class_folders
from robust_core.data.types import DatasetInfo
from robust_core.errors import UserError
from robust_core.storage import file_digest

__all__ = ["archive_path", "checked_members", "read_archive"]

MAX_MEMBERS = 1_000_000
MAX_MEMBER_BYTES = 8 << 20
MAX_TOTAL_BYTES = 4 << 30
_BROKEN = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError)


def archive_path(base: Path, info: DatasetInfo, split: str) -> Path:
    """Return where the packed archive of a split lies."""
    return base / f"{info.name}-jpeg-{split}.tar.xz"


def checked_members(
    archive: tarfile.TarFile, path: Path, max_member: int, max_total: int
) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files of an archive; refuse links, devices, escaping paths and absurd sizes."""
    total = 0
    for count, member in enumerate(archive):
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or "\\" in member.name:
            raise _refused(path, member, "its path leads outside the archive")
        if member.isdir():
            continue
        if not member.isreg():
            raise _refused(path, member, "it is not a regular file")
        total += member.size
        if member.size > max_member or total > max_total or count >= MAX_MEMBERS:
            raise _refused(path, member, f"it is too large ({member.size:,} bytes, {total:,} in all)")
        yield member


def _refused(path: Path, member: tarfile.TarInfo, why: str) -> UserError:
    return UserError(
        f"The archive {path} was refused because of its member {member.name!r}: {why}; get a clean copy."
    )


def read_archive(base: Path, info: DatasetInfo, split: str) -> Raw:
    """Return the images of a packed archive, the k-th of each class in turn."""
    path = archive_path(base, info, split)
    if not path.is_file():
        raise UserError(
            f"The archive {path} is missing; put it beside the other split's or name another folder."
        )
    folders: dict[str, dict[str, bytes]] = {}
    try:
        with lzma.open(path) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as archive:
            for member in checked_members(archive, path, MAX_MEMBER_BYTES, MAX_TOTAL_BYTES):
                parts = PurePosixPath(member.name).parts
                if not parts[-1].lower().endswith(IMAGE_SUFFIXES):
                    continue
                if len(parts) != 3 or parts[0] != split:
                    raise _refused(path, member, f"expected {split}/<class>/<image>")
                stream = archive.extractfile(member)
                assert stream is not None  # a regular file
                folders.setdefault(parts[1], {})[parts[2]] = stream.read()
            while unpacked.read(1 << 16):  # tar ends before the file does, whose end may be cut
                pass
    except UserError:
        raise
    except _BROKEN as error:
        raise UserError(
            f"The archive {path} is truncated or corrupt ({plain_error(error)}); get a fresh copy."
        ) from error
    return from_class_folders(folders, info, f"{path}:{split}", file_digest(path))
