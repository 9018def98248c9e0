"""From the columns of a CSV file to a table of images; a wrong value is named with its row and file."""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robust_core.data.files import plain_error
from robust_core.data.groups import group_index, group_names
from robust_core.data.table import SPLITS, ImageTable
from robust_core.data.types import DatasetInfo
from robust_core.errors import UserError

__all__ = [
    "IMAGENET",
    "Columns",
    "Grouping",
    "file_names",
    "grouped_table",
    "integers",
    "read_columns",
    "read_header",
    "split_codes",
]

_INTEGER = re.compile(r"[+-]?[0-9]{1,100}")
_OUTSIDE = re.compile(r"^$|^/|^[A-Za-z]:|(^|/)\.\.(/|$)", re.MULTILINE)
_SPLIT_CODES = {"0": 0, "1": 1, "2": 2, "train": 0, "val": 1, "validation": 1, "test": 2}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's pixels per channel, in [0, 1]."""
_SIZE = 224
_UNREADABLE = (OSError, UnicodeDecodeError, csv.Error)


@dataclass(frozen=True)
class Columns:
    """Some columns of a CSV file: the texts of each by name, and the row of each entry (1 is the header)."""

    source: Path
    texts: Mapping[str, Sequence[str]]
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def wrong(self, position: int, name: str, what: str, remedy: str = "correct the row") -> UserError:
        """Return the error for one entry of column ``name``."""
        return UserError(
            f"Row {self.rows[position]} of {self.source}: {name} = {self.texts[name][position]!r} {what}; {remedy}."
        )


@dataclass(frozen=True)
class Grouping:
    """What labels and confounders mean: their names, the classes, and the number of values of each confounder.

    ``official`` names the groups as published (see :func:`robust_core.data.groups.group_names`).
    """

    target: str
    confounders: tuple[str, ...]
    classes: tuple[str, ...]
    sizes: tuple[int, ...]
    official: bool = False


def read_header(path: Path) -> list[str]:
    """Return the names of a file's columns; ``UserError`` where it cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return [name.strip() for name in next(csv.reader(stream, strict=True), [])]
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"The table {path} cannot be read ({plain_error(error)}); expected a comma-separated file in UTF-8:"
        " restore or replace it."
    )


def read_columns(path: Path, names: Iterable[str]) -> Columns:
    """Return the columns ``names`` of a comma-separated file in UTF-8; blank lines are passed over.

    Raises ``UserError`` for a file that cannot be read, a column that is missing (with the nearest names) or occurs
    twice, a row with more or fewer fields than the header, and a table without rows.
    """
    names = list(dict.fromkeys(names))
    header = read_header(path)
    places = [_place(name, header, path) for name in names]
    picked: list[list[str]] = [[] for _ in names]
    fields = list(zip(picked, places, strict=True))
    rows: list[int] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            next(reader)
            for row in reader:
                if len(row) != len(header):
                    if not row:
                        continue
                    raise UserError(
                        f"Row {reader.line_num} of {path} has {len(row)} fields, its header has {len(header)};"
                        " repair or remove the row."
                    )
                for column, place in fields:
                    column.append(row[place])
                rows.append(reader.line_num)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    if not rows:
        raise UserError(f"The table {path} has no rows; expected one for each image: restore or replace it.")
    return Columns(path, dict(zip(names, picked, strict=True)), rows)


def _place(name: str, header: Sequence[str], path: Path) -> int:
    if header.count(name) > 1:
        raise UserError(f"{path} has {header.count(name)} columns called {name!r}; keep one of them.")
    if name in header:
        return header.index(name)
    lowered = {known.lower(): known for known in header}
    near = [repr(lowered[match]) for match in difflib.get_close_matches(name.lower(), lowered, n=3)]
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    raise UserError(f"{path} has no column {name!r}{hint} Its columns: {', '.join(header) or 'none'}.")


def integers(columns: Columns, name: str, allowed: Sequence[int] | None = None) -> Tensor:
    """Return column ``name`` as int64 ``(N,)``; each must be ``allowed``, or (None) count from 0 without gaps."""
    texts = columns.texts[name]
    known = {text: int(text) for text in dict.fromkeys(texts) if _INTEGER.fullmatch(text.strip())}
    expected = range(len(set(known.values()))) if allowed is None else allowed
    for text in dict.fromkeys(texts):
        if text not in known:
            raise columns.wrong(texts.index(text), name, f"is not an integer, expected {_listed(expected)}")
        if known[text] in expected:
            continue
        what = f"is out of range, expected {_listed(expected)}"
        if allowed is None and known[text] >= 0:
            gap = min(set(expected) - set(known.values()))
            what = f"leaves a gap, as no row has {gap}, expected numbers that count 0, 1, 2, ..."
        raise columns.wrong(texts.index(text), name, what)
    return torch.tensor([known[text] for text in texts], dtype=torch.int64)


def _listed(values: Sequence[int]) -> str:
    if len(values) > 3:
        return f"{values[0]} to {values[-1]}"
    return " or ".join(map(str, values)) or "0, 1, 2, ..."


def split_codes(columns: Columns, name: str) -> Tensor:
    """Return a column of splits as codes of ``SPLITS``, int64 ``(N,)``: 0, 1, 2 or their names."""
    texts = columns.texts[name]
    codes = {text: _SPLIT_CODES.get(text.strip().lower()) for text in dict.fromkeys(texts)}
    for text, code in codes.items():
        if code is None:
            raise columns.wrong(
                texts.index(text), name, "is no split, expected 0 (train), 1 (validation) or 2 (test)"
            )
    return torch.tensor([codes[text] for text in texts], dtype=torch.int64)


def file_names(columns: Columns, name: str, below: str = "") -> tuple[str, ...]:
    """Return a column of file names with ``/``, starting from the folder above ``below``.

    Names that leave the folder (absolute, or with ``..``), empty names and names that occur twice are refused.
    """
    files = [text.strip().replace("\\", "/").removeprefix("./") for text in columns.texts[name]]
    if _OUTSIDE.search("\n".join(files)):  # one search for all: there may be 200,000 names
        for position, file in enumerate(files):
            if _OUTSIDE.search(file):
                what = "names no file below the folder of the images, expected a path relative to it"
                raise columns.wrong(position, name, what)
    if len(set(files)) < len(files):
        first: dict[str, int] = {}
        for position, file in enumerate(files):
            if first.setdefault(file, position) != position:
                what = f"stands in row {columns.rows[first[file]]} already"
                raise columns.wrong(position, name, what, "remove one of the two rows")
    return tuple(below + file for file in files) if below else tuple(files)


def grouped_table(
    *,
    name: str,
    title: str,
    root: Path,
    source: Path,
    names: tuple[str, ...],
    rows: Sequence[int],
    labels: Tensor,
    confounders: Tensor,
    splits: Tensor,
    grouping: Grouping,
    official_counts: dict[str, int] | None = None,
    notes: tuple[str, ...] = (),
) -> ImageTable:
    """Return the table of images with their groups; ``confounders`` int64 ``(N, K)``.

    Images are meant to be 224x224, with ImageNet's mean and deviation, and not augmented. ``official_counts`` are
    those of the official release: a table with other counts gets a note that says so.
    """
    counts = dict(zip(SPLITS, torch.bincount(splits, minlength=len(SPLITS)).tolist(), strict=True))
    if official_counts is not None and counts != official_counts:
        told = (
            f"{counts['train']:,} training, {counts['validation']:,} validation and {counts['test']:,} test"
        )
        notes = (f"{title}: {told} images, not the official release", *notes)
    groups = group_names(
        grouping.target, grouping.confounders, len(grouping.classes), grouping.sizes, grouping.official
    )
    info = DatasetInfo(
        name=name,
        title=title,
        classes=grouping.classes,
        size=_SIZE,
        mean=IMAGENET[0],
        std=IMAGENET[1],
        groups=groups,
        official_counts=official_counts or counts,
        own_validation=True,
        crop_padding=0,
        flip=False,
    )
    return ImageTable(
        info=info,
        root=root,
        names=names,
        labels=labels,
        groups=group_index(labels, confounders, grouping.sizes),
        splits=splits,
        source=source,
        rows=torch.tensor(rows, dtype=torch.int64),
        notes=notes,
    )
