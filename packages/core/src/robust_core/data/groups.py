"""Groups: what label and confounders of an image make together, how groups are called, how many images each has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robust_core.data.table import SPLITS, ImageTable
from robust_core.errors import UserError

__all__ = ["check_groups", "confounder_code", "group_counts", "group_index", "group_names"]


def confounder_code(confounders: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return one number per image, int64 ``(N,)``, for its confounders ``(N, K)``.

    ``sizes`` gives the number of values of each. The first name is the lowest digit: with binary confounders
    ``c = sum_i 2^i a_i`` (golden README, part 1); 0 without any.
    """
    code = torch.zeros(confounders.shape[0], dtype=torch.int64)
    for place, size in reversed(list(enumerate(sizes))):
        code = code * size + confounders[:, place]
    return code


def group_index(labels: Tensor, confounders: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return ``g = y * (number of confounder codes) + c``, int64 ``(N,)``, for labels ``(N,)`` and ``(N, K)``."""
    return labels * math.prod(sizes) + confounder_code(confounders, sizes)


def group_names(
    target: str, confounders: Sequence[str], classes: int, sizes: Sequence[int], official: bool = False
) -> tuple[str, ...]:
    """Return the names of the groups in the order of :func:`group_index`.

    ``official`` writes the code of the confounders with binary digits whatever ``sizes`` says, as published, so
    that the third value of a single confounder reads like the first.

    >>> group_names("y", ["place"], 1, [3])
    ('y = 0, place = 0', 'y = 0, place = 1', 'y = 0, place = 2')
    >>> group_names("y", ["place"], 1, [3], official=True)
    ('y = 0, place = 0', 'y = 0, place = 1', 'y = 0, place = 0')
    """
    bases = [2] * len(sizes) if official else sizes
    names = []
    for label in range(classes):
        for code in range(math.prod(sizes)):
            parts, rest = [f"{target} = {label}"], code
            for name, base in zip(confounders, bases, strict=True):
                rest, digit = divmod(rest, base)
                parts.append(f"{name} = {digit}")
            names.append(", ".join(parts))
    return tuple(names)


def group_counts(groups: Tensor, n_groups: int) -> Tensor:
    """Return the number of images of each group, int64 ``(n_groups,)``."""
    return torch.bincount(groups, minlength=n_groups)


def check_groups(table: ImageTable) -> tuple[str, ...]:
    """Return one note for each of validation and test split that lacks groups, for the user to see.

    A group without training images has no loss and no weight: ``UserError``.
    """
    names = table.info.groups or ()
    notes = []
    for code, split in enumerate(SPLITS):
        members = table.groups[table.splits == code]
        if split == "train" and not len(members):
            raise UserError(
                f"{table.source} lists no training image; give at least one row of every group the split 0 (train)."
            )
        absent = [
            name for name, count in zip(names, group_counts(members, len(names)), strict=True) if not count
        ]
        if not absent:
            continue
        which = f"the group{'s' if len(absent) > 1 else ''} {' and '.join(repr(name) for name in absent)}"
        if split == "train":
            raise UserError(
                f"{table.source} has no training image of {which}; add some, or choose another target or"
                " confounder, so that every group occurs in training."
            )
        notes.append(f"{table.info.title}: no {split} image of {which}, of which nothing can be said there")
    return tuple(notes)
