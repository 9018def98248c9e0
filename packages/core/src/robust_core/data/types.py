"""What travels through the house: a data set in memory and a batch drawn from it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

__all__ = ["Batch", "DatasetInfo", "ImageSet"]


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before its files are opened.

    ``mean`` and ``std`` are per channel, of images in [0, 1]. ``official_counts`` gives the images per
    split of the official release: its keys are the splits that can be loaded. ``own_validation`` says that
    the release has a validation split to select on, apart from ``test``. ``crop_padding`` and ``flip`` are
    the augmentation that papers use on it (0 and False: none). ``resized_crop`` takes a random resized crop instead
    of the padded one, with aspect ratios (width/height) between those of ``crop_ratio``.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    groups: tuple[str, ...] | None = None
    official_counts: dict[str, int] = field(default_factory=dict)
    own_validation: bool = False
    crop_padding: int = 4
    flip: bool = True
    resized_crop: bool = False
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)


@dataclass(frozen=True)
class ImageSet:
    """A split in memory.

    ``images`` uint8 ``(N, 3, H, W)``; ``labels`` int64 ``(N,)``; ``groups`` int64 ``(N,)`` or None;
    ``indices`` int64 ``(N,)``: the positions in the full split, kept by :meth:`subset`. ``digest`` is the
    SHA-256 of the files (or of the pixels, for drawn sets) and goes into ``config.json``. ``notes`` are
    the one-line remarks that a user should see ("not the official release"). ``mapped``: the images are backed
    by a file on disk, or too many for a GPU: they stay on the CPU, and what is taken from them goes to ``device``.
    """

    info: DatasetInfo
    split: str
    images: Tensor
    labels: Tensor
    indices: Tensor
    groups: Tensor | None = None
    digest: str = ""
    notes: tuple[str, ...] = ()
    mapped: bool = False

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the labels lie, and batches come to lie."""
        return self.labels.device

    def subset(self, positions: Tensor) -> ImageSet:
        """Return the images at ``positions`` (int64, of this set), in that order; those of a mapped set are read."""
        return replace(
            self,
            images=self.images[self._rows(positions)],
            labels=self.labels[positions],
            indices=self.indices[positions],
            groups=None if self.groups is None else self.groups[positions],
        )

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the set with its tensors on ``device``, but for the images of a mapped set."""
        return replace(
            self,
            images=self.images if self.mapped else self.images.to(device),
            labels=self.labels.to(device),
            indices=self.indices.to(device),
            groups=None if self.groups is None else self.groups.to(device),
        )

    def pixels(self, positions: Tensor | slice) -> Tensor:
        """Return float32 images in [0, 1], ``(n, 3, H, W)``, on ``device``: exactly ``uint8 / 255`` in float32."""
        return self.images[self._rows(positions)].to(self.device).float() / 255.0

    def _rows(self, positions: Tensor | slice) -> Tensor | slice:
        return positions.to(self.images.device) if isinstance(positions, Tensor) else positions


@dataclass(frozen=True)
class Batch:
    """One batch of one process, cut from the global batch of ``global_size`` images.

    ``images`` float32 ``(n, 3, H, W)`` in [0, 1]; ``labels`` int64 ``(n,)``; ``groups`` int64 ``(n,)`` or
    None; ``indices`` int64 ``(n,)``: positions in the training :class:`ImageSet` (0..N-1), by which anything
    cached per image is found. ``offsets`` int64 ``(n, 2)``: top-left corner (row, column) of the crop in the
    zero-padded image, or None without cropping; ``flips`` bool ``(n,)``, mirrored after the crop, or None.
    ``padding`` is the width of that zero border. ``boxes`` int64 ``(n, 4)``: top, left, height and width, in pixels
    of the stored image, of the part that was resized to the whole before ``flips``, or None.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    groups: Tensor | None = None
    offsets: Tensor | None = None
    flips: Tensor | None = None
    padding: int = 0
    global_size: int = 0
    boxes: Tensor | None = None

    def __len__(self) -> int:
        return self.images.shape[0]
