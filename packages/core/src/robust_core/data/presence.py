"""Where the files of a table of images are looked for, and where an image is listed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robust_core.data.table import ImageTable
from robust_core.errors import UserError

__all__ = ["bases", "not_found", "row_of"]


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
