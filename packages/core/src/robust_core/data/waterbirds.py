"""Waterbirds (Sagawa et al. 2020): birds on land and water backgrounds, listed in ``metadata.csv``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robust_core.data.columns import Grouping, file_names, grouped_table, integers, read_columns, split_codes
from robust_core.data.presence import bases, not_found
from robust_core.data.table import ImageTable
from robust_core.errors import UserError

__all__ = ["read_waterbirds"]

_DEFAULT_ROOT = "cub"
_COUNTS = {"train": 4_795, "validation": 1_199, "test": 5_794}
_LIST = "metadata.csv"


def read_waterbirds(
    root: str | Path | None = None,
    target: str = "waterbird_complete95",
    confounders: Sequence[str] = ("forest2water2",),
) -> ImageTable:
    """Return the table of ``<root>/data/<target>_<confounder>/metadata.csv``.

    ``root`` is the folder that contains ``data`` (default ``cub``), its parent, or ``data`` itself. Columns:
    ``img_filename`` (from that folder), ``y`` (1 waterbird), ``place`` (1 water), ``split`` (0 train, 1
    validation, 2 test). Raises ``UserError`` for missing files (with the expected tree) and wrong rows.
    """
    if len(confounders) != 1:
        raise UserError(
            f"Waterbirds was given {len(confounders)} confounders, expected one, the second part of its folder's"
            " name: for example forest2water2."
        )
    folder_name = f"{target}_{confounders[0]}"
    places = bases(root, _DEFAULT_ROOT, _DEFAULT_ROOT)
    folder = next((base / folder_name for base in places if (base / folder_name / _LIST).is_file()), None)
    if folder is None:
        tree = [f"data/{folder_name}/{_LIST}", f"data/{folder_name}/<species>/<image>.jpg"]
        others = sorted({path.parent.name for base in places for path in base.glob(f"*/{_LIST}")})
        title = f"{folder_name} (but {', '.join(others)})" if others else folder_name
        raise not_found(title, root, _DEFAULT_ROOT, tree)
    columns = read_columns(folder / _LIST, ["img_filename", "y", "place", "split"])
    return grouped_table(
        name="waterbirds",
        title="Waterbirds",
        root=folder,
        source=columns.source,
        names=file_names(columns, "img_filename"),
        rows=columns.rows,
        labels=integers(columns, "y", (0, 1)),
        confounders=integers(columns, "place", (0, 1))[:, None],
        splits=split_codes(columns, "split"),
        grouping=Grouping(target, tuple(confounders), ("landbird", "waterbird"), (2,)),
        official_counts=_COUNTS,
    )
