"""COVID CT: chest slices of several hospitals, listed by site or in one ``metadata.csv``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from robust_core.data.columns import Grouping, file_names, grouped_table, integers, read_columns, split_codes
from robust_core.data.groups import group_index
from robust_core.data.label_shift import legacy_generator
from robust_core.data.presence import bases, not_found
from robust_core.data.table import ImageTable
from robust_core.errors import UserError
from robust_core.randomness import generator_for

__all__ = ["covid_split", "read_covid"]

_DEFAULT_ROOT = "dataset"
_LIST = "metadata.csv"
_CLASSES = ("non-COVID", "COVID")
# site folder, its list, the column of file names; the order gives the number of the hospital
_SITES = (
    ("COV_I", "Iran.csv", "filename"),
    ("SARS-COV-2", "MetaInfo.csv", "path"),
    ("COV_C", "MetaInfo.csv", "path"),
)
_TRAIN, _VALIDATION = 0.5, 0.7  # where the training split ends and where the validation split does


def read_covid(
    root: str | Path | None = None,
    target: str = "Covid",
    confounders: Sequence[str] = ("hospital",),
    *,
    official: bool = False,
    seed: int = 0,
) -> ImageTable:
    """Return the table of either layout, images with their hospital as confounder.

    * ``metadata.csv`` with ``filename``, ``label`` (1 COVID), ``source_id`` (the hospital, counted from 0) and
      ``split``;
    * the three official site folders with their lists, hospitals 0, 1, 2: their split is fixed, stratified by
      group and independent of ``seed`` (:func:`covid_split`); ``official`` draws it by ``seed``, as published.
      ``source`` is then the folder of the sites and ``rows`` the row in the list of the image's own site.

    ``official`` also prints the third hospital like the first and prefers the site folders where both are.
    ``root`` is the folder of either layout (default ``dataset``) or its parent; ``target`` and the one confounder
    are words for the names of the groups. Splits are per image, not per patient. Raises ``UserError`` for missing
    files (with the expected trees) and wrong rows.
    """
    if len(confounders) != 1:
        raise UserError(
            f"COVID CT was given {len(confounders)} confounders, expected one word for the hospital: for example"
            " hospital."
        )
    places = bases(root, _DEFAULT_ROOT, _DEFAULT_ROOT, "covid-ct")
    listed = next((base for base in places if (base / _LIST).is_file()), None)
    sited = next(
        (base for base in places if all((base / site / file).is_file() for site, file, _ in _SITES)), None
    )
    if sited is not None and (official or listed is None):
        return _from_sites(sited, target, confounders[0], official, seed)
    if listed is not None:
        return _from_list(listed, target, confounders[0], official)
    tree = [*(f"{site}/{file}" for site, file, _ in _SITES), f"(or, instead of the three) {_LIST}"]
    raise not_found("COVID CT", root, _DEFAULT_ROOT, tree)


def covid_split(names: Sequence[str], groups: Tensor) -> Tensor:
    """Return a fixed split 50/20/30, codes int64 ``(N,)``, of the images of each group ``(N,)``.

    It depends on the names of the files and on nothing else: not on a seed, nor on the order of the rows.
    """
    splits = torch.empty(len(names), dtype=torch.int64)
    by_name = torch.tensor(sorted(range(len(names)), key=names.__getitem__))
    for group in range(int(groups.max()) + 1):
        members = by_name[groups[by_name] == group]
        order = torch.randperm(len(members), generator=generator_for(0, "split of COVID CT", group))
        splits[members[order]] = _codes(len(members))
    return splits


def _codes(n: int) -> Tensor:
    place = torch.arange(n)
    return (place >= int(_TRAIN * n)).long() + (place >= int(_VALIDATION * n)).long()


def _official_split(n: int, seed: int) -> Tensor:
    """Return the published split: codes shuffled by numpy's legacy generator (golden README, part 1)."""
    codes = _codes(n).numpy()
    legacy_generator(seed).shuffle(codes)
    return torch.from_numpy(codes)


def _from_sites(base: Path, target: str, confounder: str, official: bool, seed: int) -> ImageTable:
    names: list[str] = []
    rows: list[int] = []
    labels, hospitals = [], []
    for hospital, (site, file, column) in enumerate(_SITES):
        columns = read_columns(base / site / file, ["label", column])
        names += file_names(columns, column, below=f"{site}/")
        rows += columns.rows
        labels.append(integers(columns, "label", (0, 1)))
        hospitals.append(torch.full((len(columns), 1), hospital))
    sizes = (len(_SITES),)
    label, confounders = torch.cat(labels), torch.cat(hospitals)
    if official:
        splits = _official_split(len(names), seed)
    else:
        splits = covid_split(names, group_index(label, confounders, sizes))
    return grouped_table(
        name="covid",
        title="COVID CT",
        root=base,
        source=base,
        names=tuple(names),
        rows=rows,
        labels=label,
        confounders=confounders,
        splits=splits,
        grouping=Grouping(target, (confounder,), _CLASSES, sizes, official),
    )


def _from_list(base: Path, target: str, confounder: str, official: bool) -> ImageTable:
    columns = read_columns(base / _LIST, ["filename", "label", "source_id", "split"])
    hospitals = integers(columns, "source_id")
    return grouped_table(
        name="covid",
        title="COVID CT",
        root=base,
        source=columns.source,
        names=file_names(columns, "filename"),
        rows=columns.rows,
        labels=integers(columns, "label", (0, 1)),
        confounders=hospitals[:, None],
        splits=split_codes(columns, "split"),
        grouping=Grouping(target, (confounder,), _CLASSES, (max(2, int(hospitals.max()) + 1),), official),
    )
