"""The masks of a whole training set, one bit per entry, and how a mask follows its image's crop and flip."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from robust_core.data import Batch, crop_and_flip, resized_crops
from robust_core.errors import UserError

__all__ = ["MaskStore", "moved", "pack_bits", "unpack_bits"]

_CHUNK = 4096  # images whose bits are unpacked at once where all are counted


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)


def pack_bits(bits: Tensor) -> Tensor:
    """Return bool ``(n, B)`` as uint8 ``(n, ceil(B / 8))``, the first bit lowest; missing bits are 0."""
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -bits.shape[1] % 8))
    groups = padded.view(padded.shape[0], -1, 8)
    return (groups << _shifts(bits.device)).sum(dim=2, dtype=torch.uint8)


def unpack_bits(packed: Tensor, count: int) -> Tensor:
    """Return the first ``count`` bits of each row of :func:`pack_bits`, bool ``(n, count)``."""
    bits = (packed[:, :, None] >> _shifts(packed.device)) & 1
    return bits.flatten(1)[:, :count].bool()


class MaskStore:
    """Masks of ``count`` images as packed bits on one device: 6.4 MB for 50,000 masks of 1x32x32.

    ``shape`` is (C, H, W) of a mask. Masks lie in the coordinates of the images as stored, before any crop or
    flip; :func:`moved` takes them along. Until written, a mask is False everywhere.
    """

    def __init__(self, count: int, shape: tuple[int, int, int], device: torch.device | str = "cpu") -> None:
        self.shape = shape
        self._entries = math.prod(shape)
        self._packed = torch.zeros(count, -(-self._entries // 8), dtype=torch.uint8, device=device)

    def __len__(self) -> int:
        return self._packed.shape[0]

    def write(self, indices: Tensor, masks: Tensor) -> None:
        """Store bool masks ``(n, C, H, W)`` for the images at ``indices`` int64 ``(n,)``."""
        if tuple(masks.shape[1:]) != self.shape:
            raise UserError(f"Masks have shape {tuple(masks.shape[1:])}; this store holds {self.shape}.")
        self._packed[indices.to(self._packed.device)] = pack_bits(masks.to(self._packed.device).flatten(1))

    def read(self, indices: Tensor) -> Tensor:
        """Return the masks of the images at ``indices`` int64 ``(n,)``: bool ``(n, C, H, W)``."""
        packed = self._packed[indices.to(self._packed.device)]
        return unpack_bits(packed, self._entries).view(-1, *self.shape)

    def density(self) -> float:
        """Return the fraction of all entries that are True (waits for the device)."""
        total = 0
        for packed in torch.split(self._packed, _CHUNK):
            total += int(unpack_bits(packed, self._entries).sum())
        return total / max(1, len(self) * self._entries)

    def state_dict(self) -> dict[str, Any]:
        """Return the packed bits and the shape, as tensors and whole numbers only."""
        return {"packed": self._packed.clone(), "shape": list(self.shape)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over :meth:`state_dict` of a store; one of another size raises :class:`UserError`."""
        shape, packed = tuple(state["shape"]), state["packed"]
        if shape != self.shape or packed.shape != self._packed.shape:
            raise UserError(
                f"The checkpoint holds {packed.shape[0]} masks of {shape}, this run {len(self)} of "
                f"{self.shape}: resume with the data set, image size and mask rule of the checkpoint."
            )
        self._packed.copy_(packed)


def moved(masks: Tensor, batch: Batch) -> Tensor:
    """Return masks ``(n, C, H, W)`` cropped, resized and flipped as the batch's images were.

    A crop adds False; resized, an entry is True where at least half of what it shows was.
    """
    offsets, flips, boxes = (
        None if moves is None else moves.to(masks.device)
        for moves in (batch.offsets, batch.flips, batch.boxes)
    )
    if boxes is not None:
        return resized_crops(masks.to(torch.uint8), boxes, flips) >= 0.5
    return crop_and_flip(masks, offsets, flips, batch.padding, fill=False)
