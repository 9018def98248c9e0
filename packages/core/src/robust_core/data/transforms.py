"""What is done to an image before training sees it: crops and a resize that draw nothing, on 8-bit RGB."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robust_core.errors import UserError
from robust_core.image_files import Steps, prepared

__all__ = ["Pipeline", "face_pipeline", "photo_pipeline", "published_pipeline", "stretched_face_pipeline"]

PUBLISHED_SIZE = 224
RESIZED_TO = 256
FACE_CROP = 178
FACE_HEIGHT = 218


@dataclass(frozen=True)
class Pipeline:
    """Centre crop, resize, centre crop, in this order and in pixels; uint8 ``(3, H, W)`` comes out.

    ``first_crop`` is a square of the original, min(first_crop, height, width) for smaller images; ``resize`` is
    (height, width), PIL's bilinear with antialiasing, aspect not kept; ``crop`` is a square of the resized
    image, offset ``round((length - crop) / 2)``. None: left out. Division by 255 comes later, in
    :meth:`ImageSet.pixels` and :func:`batches`; normalisation is part of the network.

    Raises:
        UserError: for sizes that are not positive, a crop larger than the resized image, and an output that is
            not square, unless it is a published one (``official``).
    """

    resize: tuple[int, int]
    first_crop: int | None = None
    crop: int | None = None
    official: bool = False

    def __post_init__(self) -> None:
        sizes = [*self.resize, *(size for size in (self.first_crop, self.crop) if size is not None)]
        if min(sizes) < 1:
            raise UserError(f"An image size of {min(sizes)} pixels is none; expected at least 1.")
        if self.crop is not None and self.crop > min(self.resize):
            raise UserError(
                f"A crop of {self.crop} pixels does not fit into {_form(self.resize)}; take a smaller crop or a"
                " larger resize."
            )
        if len(set(self.size)) > 1 and not self.official:
            raise UserError(
                f"Images of {_form(self.size)} pixels (height x width) are not square; networks here take square"
                " images: resize to equal sides."
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what comes out."""
        return self.resize if self.crop is None else (self.crop, self.crop)

    @property
    def steps(self) -> Steps:
        """The same as plain numbers, for processes that decode."""
        return Steps(self.first_crop, self.resize, self.crop)

    @property
    def key(self) -> str:
        """A text that is equal exactly for equal pixels."""
        crops = ["none" if size is None else str(size) for size in (self.first_crop, self.crop)]
        return f"rgb8 centre-crop={crops[0]} bilinear-antialias={_form(self.resize)} centre-crop={crops[1]}"

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return an image in any of PIL's 8-bit modes as uint8 ``(3, H, W)``."""
        return prepared(image.convert("RGB"), self.steps)

    def __str__(self) -> str:
        """Return the printed form, a line per step, in torchvision's words."""
        height, width = self.resize
        lines = [f"Resize(size=({height}, {width}), interpolation=bilinear, max_size=None, antialias=True)"]
        if self.first_crop is not None:
            lines.insert(0, f"CenterCrop(size=({self.first_crop}, {self.first_crop}))")
        if self.crop is not None:
            lines.append(f"CenterCrop(size=({self.crop}, {self.crop}))")
        return "\n".join([*lines, "ToTensor()"])


def _form(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def photo_pipeline(size: int = PUBLISHED_SIZE) -> Pipeline:
    """Return Waterbirds' and COVID's: resize both sides to 256/224 of ``size`` (256 for 224), centre crop ``size``."""
    resized = round(size * RESIZED_TO / PUBLISHED_SIZE)
    return Pipeline((resized, resized), crop=size)


def face_pipeline(size: int = PUBLISHED_SIZE) -> Pipeline:
    """Return CelebA's: centre crop min(178, height, width), resize to ``size``."""
    return Pipeline((size, size), first_crop=FACE_CROP)


def stretched_face_pipeline() -> Pipeline:
    """Return CelebA's as published for ``resnet34``: (width 178, height 218) is taken as (height, width).

    Faces come out 178 high and 218 wide.
    """
    return Pipeline((FACE_CROP, FACE_HEIGHT), first_crop=FACE_CROP, official=True)


def published_pipeline(dataset: str, size: int = PUBLISHED_SIZE, *, official: bool = False) -> Pipeline:
    """Return the evaluation transform of a table's data set: that of CelebA, or for any other that of photos.

    ``official``: the published stretch of ``resnet34``, which CelebA alone has and which fixes the size
    (:func:`stretched_face_pipeline`).
    """
    faces = dataset.lower() == "celeba"
    if official and not (faces and size == PUBLISHED_SIZE):
        raise UserError(
            f"The published stretch to {FACE_CROP}x{FACE_HEIGHT} exists for CelebA at the size"
            f" {PUBLISHED_SIZE} only, not for '{dataset}' at {size}: leave it out."
        )
    if official:
        return stretched_face_pipeline()
    return face_pipeline(size) if faces else photo_pipeline(size)
