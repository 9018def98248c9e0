"""A table of image files with labels, groups and splits: what every grouped data set is before it is decoded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from robust_core.data.types import DatasetInfo

__all__ = ["SPLITS", "ImageTable"]

SPLITS = ("train", "validation", "test")
"""The names of the split codes 0, 1 and 2."""


@dataclass(frozen=True)
class ImageTable:
    """One row per image, in the order of the file that lists them.

    ``info`` names the classes and groups; ``root`` is the folder that ``names`` (relative, with ``/``) start
    from; ``labels``, ``groups`` and ``splits`` (codes of ``SPLITS``) are int64 ``(N,)``; ``source`` is the file that
    lists the images and ``rows`` int64 ``(N,)`` the line of each image in it (1 is the header), for messages.
    ``notes`` are one-line remarks that a user should see.
    """

    info: DatasetInfo
    root: Path
    names: tuple[str, ...]
    labels: Tensor
    groups: Tensor
    splits: Tensor
    source: Path
    rows: Tensor
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def select(self, positions: Tensor) -> ImageTable:
        """Return the rows at ``positions`` (int64), in that order."""
        return replace(
            self,
            names=tuple(self.names[i] for i in positions.tolist()),
            labels=self.labels[positions],
            groups=self.groups[positions],
            splits=self.splits[positions],
            rows=self.rows[positions],
        )

    def positions(self, split: str) -> Tensor:
        """Return the positions of a split, ascending, int64."""
        return torch.nonzero(self.splits == SPLITS.index(split)).squeeze(1)
