"""Any images that a CSV file lists with a target, confounders and a split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from robust_core.data.columns import (
    Grouping,
    file_names,
    grouped_table,
    integers,
    read_columns,
    read_header,
    split_codes,
)
from robust_core.data.table import ImageTable
from robust_core.errors import UserError

__all__ = ["read_listed"]

_IMAGE_COLUMNS = ("img_filename", "filename", "file", "path", "image", "image_id")


def read_listed(
    metadata: str | Path,
    target: str,
    confounders: Sequence[str] = (),
    *,
    root: str | Path | None = None,
) -> ImageTable:
    """Return the table of the file ``metadata``, one row per image.

    The first of the columns ``img_filename``, ``filename``, ``file``, ``path``, ``image`` and ``image_id`` that is
    there names the files, from ``root`` (default: the folder of ``metadata``); ``target`` and each of ``confounders``
    are columns of integers that count 0, 1, 2, ... without gaps; without confounders the groups are the classes.
    Column ``split`` holds 0, 1, 2 or train, validation, test. Raises ``UserError`` for a missing file or column and
    for wrong rows.
    """
    path = Path(metadata).expanduser()
    if not path.is_file():
        raise UserError(
            f"The table {path} does not exist; name a CSV file with the columns {_IMAGE_COLUMNS[0]}, split,"
            f" {', '.join([target, *confounders])}, one row per image."
        )
    images = _image_column(path)
    chosen = [target, *confounders]
    reserved = [images, "split", *chosen]
    twice = next((name for place, name in enumerate(reserved) if name in reserved[:place]), None)
    if twice is not None:
        raise UserError(
            f"The column {twice!r} is named twice among file name, split, target and confounders; name different ones."
        )
    folder = path.parent if root is None else Path(root).expanduser()
    columns = read_columns(path, reserved)
    values = torch.stack([integers(columns, name) for name in chosen], dim=1)
    sizes = [max(2, int(largest) + 1) for largest in values.amax(0)]
    return grouped_table(
        name="table",
        title=f"Table {path.name}",
        root=folder,
        source=path,
        names=file_names(columns, images),
        rows=columns.rows,
        labels=values[:, 0],
        confounders=values[:, 1:],
        splits=split_codes(columns, "split"),
        grouping=Grouping(
            target, tuple(confounders), tuple(f"{target} = {k}" for k in range(sizes[0])), tuple(sizes[1:])
        ),
    )


def _image_column(path: Path) -> str:
    header = read_header(path)
    found = next((name for name in _IMAGE_COLUMNS if name in header), None)
    if found is None:
        raise UserError(
            f"{path} has no column of file names, expected one called {', '.join(_IMAGE_COLUMNS[:-1])} or"
            f" {_IMAGE_COLUMNS[-1]}; its columns: {', '.join(header) or 'none'}."
        )
    return found
