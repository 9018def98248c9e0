"""How Waterbirds is put together: which species are waterbirds, which place each bird gets, and how it is pasted there.

Source: Sagawa et al. 2020 (Group-DRO), section 3 and appendix; the counts and labels are those of the published table.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from robust_core.randomness import generator_for

__all__ = ["WATERBIRDS", "compose", "draw_places", "draw_splits", "is_waterbird", "shrunk"]

WATERBIRDS = (
    *("albatross", "auklet", "cormorant", "frigatebird", "fulmar", "gull", "jaeger", "kittiwake", "pelican"),
    *("puffin", "tern", "gadwall", "grebe", "mallard", "merganser", "guillemot", "pacific_loon"),
)
"""Seabirds, then waterfowl, as words of the species names of CUB-200-2011."""

TRAIN, VALIDATION, TEST = 0, 1, 2


def is_waterbird(species: str, *, published: bool = True) -> bool:
    """Return whether a species (``021.Eastern_Towhee``, with or without its number) counts as a waterbird.

    The published labels take a species whose name *contains* one of ``WATERBIRDS``, and "Eastern" and "Western"
    contain "tern": Eastern Towhee, Western Meadowlark and Western Wood Pewee are waterbirds there. With
    ``published=False`` whole words count, which makes these three landbirds and leaves the other 197 as they are.

    >>> is_waterbird("021.Eastern_Towhee"), is_waterbird("021.Eastern_Towhee", published=False)
    (True, False)
    """
    name = species.partition(".")[2] or species
    edge = "" if published else "_"
    text = f"{edge}{name.lower()}{edge}"
    return any(f"{edge}{word}{edge}" in text for word in WATERBIRDS)


def draw_splits(official_train: Sequence[bool], validation: float, seed: int) -> Tensor:
    """Return the split codes, int64 ``(N,)``: 0 train, 1 validation, 2 test (CUB's own test split).

    ``round(validation * n)`` of CUB's n training images, drawn by ``seed``, are the validation split.
    """
    train = torch.tensor(list(official_train), dtype=torch.bool)
    splits = torch.where(train, TRAIN, TEST)
    rows = torch.nonzero(train).squeeze(1)
    order = torch.randperm(len(rows), generator=generator_for(seed, "waterbirds/validation"))
    splits[rows[order[: round(validation * len(rows))]]] = VALIDATION
    return splits


def draw_places(labels: Tensor, splits: Tensor, strength: float, seed: int) -> Tensor:
    """Return the place of each bird, int64 ``(N,)``: 0 land, 1 water.

    In the training split ``strength`` of each class is on its own place, in the others one half is. These are
    counts, not chances: of n birds exactly ``round(share n)`` are on water, as in the published table.
    """
    places = torch.zeros_like(labels)
    for split in (TRAIN, VALIDATION, TEST):
        for label in (0, 1):
            rows = torch.nonzero((splits == split) & (labels == label)).squeeze(1)
            own = strength if split == TRAIN else 0.5
            water = round((own if label == 1 else 1 - own) * len(rows))
            order = torch.randperm(
                len(rows), generator=generator_for(seed, "waterbirds/places", split, label)
            )
            places[rows[order[:water]]] = 1
    return places


def compose(bird: Image.Image, mask: Image.Image, place: Image.Image) -> Image.Image:
    """Return the bird on the place: ``mask bird + (1 - mask) place``, RGB, of the size of the bird's photo.

    ``mask`` is grey, 255 on the bird and 0 beside it; values between mix. The place is cropped around its centre to
    the bird's aspect ratio and resized to its size.
    """
    width, height = bird.size
    scale = min(place.width / width, place.height / height)
    crop_width, crop_height = width * scale, height * scale
    left, top = (place.width - crop_width) / 2, (place.height - crop_height) / 2
    box = (left, top, left + crop_width, top + crop_height)
    ground = place.convert("RGB").resize(bird.size, Image.Resampling.LANCZOS, box=box)
    return Image.composite(bird.convert("RGB"), ground, mask.convert("L"))


def shrunk(image: Image.Image, size: int | None) -> Image.Image:
    """Return the image with its shorter side reduced to ``size`` pixels; as it is where it is smaller, or for None."""
    shorter = min(image.size)
    if size is None or shorter <= size:
        return image
    width, height = (max(1, round(side * size / shorter)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)
