"""Where a batch's budget comes from: maps of the present network, masks by the rule, kept and moved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from part.controls import controlled_mask, uniform_budget
from part.mask import budget, density, make_mask, mask_scores
from part.store import MaskStore, moved
from robust_core.cam import CamResult, cam_of_images, normalize_map
from robust_core.data import Batch, ImageSet, batches
from robust_core.randomness import derived_seed, generator_for, slice_of_rank
from robust_core.training.distributed import gather_rows
from robust_core.training.method import StepContext

__all__ = ["MaskRule", "StoredMasks"]

BLOCK = 500


@dataclass(frozen=True)
class MaskRule:
    """How images become masks: map, rule and control. All controls compute the map, so their cost is equal."""

    cam: str = "gradcam"
    rule: str = "cam"
    cam_class: str = "predicted"
    control: str = "none"

    @property
    def channels(self) -> int:
        """Channels of a mask: 1, or 3 for the published jet rule."""
        return 3 if self.rule == "jet" else 1

    def shape(self, images: Tensor) -> tuple[int, ...]:
        """Return the shape of the masks of images ``(n, 3, H, W)``: ``(n, 1 or 3, H, W)``."""
        return (len(images), self.channels, *images.shape[2:])

    def masks(
        self, network: Any, images: Tensor, labels: Tensor, *, draw: Tensor | None = None
    ) -> tuple[Tensor, CamResult]:
        """Return masks bool ``(n, 1 or 3, H, W)`` of images, and the map's pass (logits, features).

        ``draw``: uniform numbers of the masks' shape, for the random control.
        """
        with torch.no_grad():
            seen = cam_of_images(
                network, images, method=self.cam, classes=labels if self.cam_class == "label" else None
            )
            heat = normalize_map(seen.maps)
            size = (images.shape[2], images.shape[3])
            mask = make_mask(heat, size, self.rule)
            if self.control != "none":
                scores = mask_scores(heat, size, self.rule) if self.control == "inverted" else heat
                mask = controlled_mask(mask, scores, self.control, draw=draw)
        return mask, seen

    def budget(self, mask: Tensor, *, eps: float, low_eps: float) -> Tensor:
        """Return the budget of each pixel (of each image, for the uniform control)."""
        make = uniform_budget if self.control == "uniform" else budget
        return make(mask, eps=eps, low_eps=low_eps)


@dataclass
class StoredMasks:
    """Masks of the whole training set, refreshed at epoch starts.

    By image (``by_batch`` False): computed on the images as stored, read by index, moved with crop and flip.
    By batch (as published): computed on another shuffle with other crops, and read by batch number, so that an
    image meets another image's mask.
    """

    rule: MaskRule
    by_batch: bool = False
    store: MaskStore | None = field(default=None, repr=False)

    def _store_for(self, data: ImageSet) -> MaskStore:
        if self.store is None or len(self.store) != len(data):
            shape = (self.rule.channels, data.images.shape[2], data.images.shape[3])
            self.store = MaskStore(len(data), shape, data.images.device)
        return self.store

    def refresh(self, data: ImageSet, context: StepContext, *, batch_size: int) -> float:
        """Compute all masks with the context's view; returns their density. Processes share the work."""
        store = self._store_for(data)
        if self.by_batch:
            self._refresh_by_batch(store, data, context, batch_size=batch_size)
        else:
            blocks = torch.arange(0, len(data), BLOCK)
            mine = slice_of_rank(blocks, context.processes.rank, context.processes.world_size)
            made = [self._block(data, context, int(first)) for first in mine]
            empty = torch.zeros((0, *store.shape), dtype=torch.bool, device=data.images.device)
            masks = gather_rows(torch.cat([empty, *made]).to(torch.uint8), context.processes).bool()
            store.write(torch.arange(len(data), device=data.images.device), masks)
        return store.density()

    def _block(self, data: ImageSet, context: StepContext, first: int) -> Tensor:
        rows = slice(first, min(first + BLOCK, len(data)))
        images, labels = data.pixels(rows), data.labels[rows]
        return self.rule.masks(context.view, images, labels, draw=self._draw(images, context, first))[0]

    def _draw(self, images: Tensor, context: StepContext, first: int) -> Tensor | None:
        if self.rule.control != "random":
            return None
        generator = generator_for(context.seed, "mask-control", context.step, first, device=images.device)
        return torch.rand(self.rule.shape(images), generator=generator, device=images.device)

    def _refresh_by_batch(
        self, store: MaskStore, data: ImageSet, context: StepContext, *, batch_size: int
    ) -> None:
        loader = batches(
            data,
            batch_size=batch_size,
            seed=derived_seed(context.seed, "mask-loader"),
            epoch=context.step,
        )
        first = 0
        for batch in loader:
            draw = self._draw(batch.images, context, first)
            masks, _ = self.rule.masks(context.view, batch.images, batch.labels, draw=draw)
            store.write(torch.arange(first, first + len(batch), device=masks.device), masks)
            first += len(batch)

    def load(self, state: dict[str, Any] | None) -> None:
        """Take over the masks of a checkpoint (None: there were none)."""
        if state is None:
            return
        packed: Tensor = state["packed"]
        channels, height, width = (int(side) for side in state["shape"])
        self.store = MaskStore(len(packed), (channels, height, width), packed.device)
        self.store.load_state_dict(state)

    def read(self, batch: Batch, position: int) -> Tensor:
        """Return the masks that the batch is trained with; ``position`` counts its first image in the epoch."""
        assert self.store is not None
        if self.by_batch:
            rows = torch.arange(position, position + len(batch), device=batch.images.device)
            return self.store.read(rows)
        masks = self.store.read(batch.indices)
        # the uniform control is the mean over the image's own budget, wherever it was cropped
        return masks if self.rule.control == "uniform" else moved(masks, batch)


def mean_density(mask: Tensor) -> Tensor:
    """Return the share of full-budget entries of a batch, a scalar."""
    return density(mask).mean()
