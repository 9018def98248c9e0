"""CelebA (Liu et al. 2015): faces with 40 attributes; any of them is the target, any others the confounders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from robust_core.data.columns import (
    Columns,
    Grouping,
    file_names,
    grouped_table,
    integers,
    read_columns,
    split_codes,
)
from robust_core.data.presence import bases, not_found
from robust_core.data.table import ImageTable
from robust_core.errors import UserError

__all__ = ["read_celeba"]

_DEFAULT_ROOT = "celebA"
_COUNTS = {"train": 162_770, "validation": 19_867, "test": 19_962}
_ATTRIBUTES, _PARTITION, _IMAGES = "list_attr_celeba.csv", "list_eval_partition.csv", "img_align_celeba"


def read_celeba(
    root: str | Path | None = None, target: str = "Blond_Hair", confounders: Sequence[str] = ("Male",)
) -> ImageTable:
    """Return the table of ``<root>/data/list_attr_celeba.csv`` with the splits of ``list_eval_partition.csv``.

    The two are joined by ``image_id``, whatever the order of their rows (the official code joins them by row, so
    that a reordered list is mislabelled); the order is that of the attributes. ``root`` is the folder that
    contains ``data`` (default ``celebA``), its parent, or ``data`` itself. An attribute of -1 (or 0) counts as 0.
    Raises ``UserError`` for missing files (with the expected tree), unknown attributes and wrong rows.
    """
    chosen = [target, *confounders]
    twice = next((name for place, name in enumerate(chosen) if name in chosen[:place]), None)
    if twice is not None:
        raise UserError(
            f"The attribute {twice!r} is named twice among target and confounders; name different ones."
        )
    places = bases(root, _DEFAULT_ROOT, _DEFAULT_ROOT, "CelebA", "celeba")
    base = next((base for base in places if (base / _ATTRIBUTES).is_file()), None)
    absent = [name for name in (_PARTITION, _IMAGES) if base is not None and not (base / name).exists()]
    if base is None or absent:
        tree = [f"data/{_ATTRIBUTES}", f"data/{_PARTITION}", f"data/{_IMAGES}/<image_id>"]
        title = f"complete CelebA (no {absent[0]})" if absent else "CelebA"
        raise not_found(title, root, _DEFAULT_ROOT, tree)
    attributes = read_columns(base / _ATTRIBUTES, ["image_id", *chosen])
    names = file_names(attributes, "image_id")
    splits, notes = _splits_of(attributes, names, read_columns(base / _PARTITION, ["image_id", "partition"]))
    bits = torch.stack([(integers(attributes, name, (-1, 0, 1)) > 0).long() for name in chosen], dim=1)
    nested = base / _IMAGES / _IMAGES  # what one widespread archive unpacks to
    return grouped_table(
        name="celeba",
        title="CelebA",
        root=nested if nested.is_dir() else base / _IMAGES,
        source=attributes.source,
        names=names,
        rows=attributes.rows,
        labels=bits[:, 0],
        confounders=bits[:, 1:],
        splits=splits,
        grouping=Grouping(
            target, tuple(confounders), (f"{target} = 0", f"{target} = 1"), (2,) * len(confounders)
        ),
        official_counts=_COUNTS,
        notes=notes,
    )


def _splits_of(
    attributes: Columns, names: tuple[str, ...], partition: Columns
) -> tuple[Tensor, tuple[str, ...]]:
    place_of = {name: place for place, name in enumerate(file_names(partition, "image_id"))}
    places = [place_of.get(name, -1) for name in names]
    if -1 in places:
        raise attributes.wrong(
            places.index(-1),
            "image_id",
            f"is not in {partition.source}",
            "add it to that list or remove the row",
        )
    left_out = len(partition) - len(places)
    notes = (
        (f"CelebA: {left_out:,} images of {partition.source.name} have no attributes and are left out",)
        if left_out
        else ()
    )
    return split_codes(partition, "partition")[torch.tensor(places)], notes
