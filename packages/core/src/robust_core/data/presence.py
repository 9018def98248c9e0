"""Where the files of a table of images are, and which of its images are missing."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from robust_core.data.table import ImageTable
from robust_core.errors import UserError

__all__ = ["bases", "missing_images", "not_found", "refuse_missing", "row_of"]


def bases(root: str | Path | None, default: str, *names: str) -> list[Path]:
    """Return where a data set may lie: ``root`` (else ``default``), the folders ``names`` in it, and their ``data``."""
    folder = Path(default if root is None else root).expanduser()
    found = [folder, *(folder / name for name in names)]
    return [base for own in found for base in (own / "data", own)]


def not_found(title: str, root: str | Path | None, default: str, tree: Sequence[str]) -> UserError:
    """Return the error that says what was looked for below ``root``, with the tree of its files."""
    folder = Path(default if root is None else root).expanduser()
    state = f"holds no {title}" if folder.is_dir() else "is not a folder"
    if not folder.exists():
        state = "does not exist"
    lines = "\n".join(f"  {folder}/{line}" for line in tree)
    return UserError(
        f"{folder} {state}; name the folder that holds the data set, or put the files there. Expected this"
        f" tree:\n{lines}"
    )


def row_of(table: ImageTable, position: int) -> str:
    """Return where an image is listed, for a message: ``row 5 of /data/metadata.csv``."""
    row, source = int(table.rows[position]), table.source
    if source.is_dir():  # one list in each of the folders
        return f"row {row} of the list in {source / table.names[position].partition('/')[0]}"
    return f"row {row} of {source}"


def missing_images(table: ImageTable) -> Tensor:
    """Return the positions of the images that are not on disk, ascending, int64; each folder is read once."""
    by_folder = defaultdict(list)
    for position, name in enumerate(table.names):
        inside, _, file = name.rpartition("/")
        by_folder[inside].append((position, file))
    missing: list[int] = []
    for inside, files in by_folder.items():
        folder = table.root / inside
        present = _names_in(folder)
        absent = [(at, file) for at, file in files if file not in present]
        # a file system that does not tell cases apart knows a name that its listing spells differently
        other_case = {file.lower() for file in present} if absent else set()
        missing += [
            at for at, file in absent if file.lower() not in other_case or not (folder / file).is_file()
        ]
    return torch.tensor(sorted(missing), dtype=torch.int64)


def refuse_missing(table: ImageTable, positions: Tensor | None = None) -> None:
    """Raise ``UserError`` with row and file of the first image that is not on disk.

    ``positions`` are those of :func:`missing_images`, where they are known already.
    """
    missing = missing_images(table) if positions is None else positions
    if len(missing) == 0:
        return
    first = int(missing[0])
    others = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
    raise UserError(
        f"The image {table.root / table.names[first]} of {row_of(table, first)} is"
        f" missing{others}; put it there, remove its row, or go on without by --skip-unreadable."
    )


def _names_in(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except OSError:  # a folder that is not there holds no image
        return set()
