"""Image files opened safely and brought to one size, without torch: a process that decodes starts in a moment."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

__all__ = [
    "IMAGE_FORMATS",
    "DamagedImage",
    "Steps",
    "centre_cropped",
    "decode_files",
    "open_image",
    "plain_error",
    "prepared",
    "read_content",
    "to_rgb",
]

IMAGE_FORMATS = ("PNG", "JPEG", "BMP")
MAX_FILE_BYTES = 256 << 20
_WIDE_MODES = ("I", "F")  # and "I;16", "I;16B", ...: more than 8 bits per channel
_OTHER_FORMATS = {
    "GIF": re.compile(rb"GIF8"),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "WebP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "HEIF or AVIF": re.compile(rb"....ftyp(?:avi|hei|hev|mif|msf)", re.DOTALL),
}
"""How files of other formats begin: whole ones are not to be called damaged."""
_DAMAGED = (
    OSError,
    SyntaxError,  # a broken PNG
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class DamagedImage(Exception):
    """An image that is damaged, or of a kind that is not accepted; the text is why, for a sentence's brackets."""


class Steps(NamedTuple):
    """What is done to an image, in pixels: centre crop, resize to (height, width), centre crop; None: left out."""

    first_crop: int | None
    resize: tuple[int, int]
    crop: int | None


def plain_error(error: BaseException) -> str:
    """Return an exception's text in one line, for the middle of a sentence that names the file."""
    inner = getattr(error, "reason", None)  # what a URLError wraps into "<urlopen error ...>"
    cause = inner if isinstance(inner, OSError) else error
    # With a file name, the system's text would end in the path that the sentence begins with.
    named = isinstance(cause, OSError) and cause.filename is not None and cause.strerror
    text = str(cause.strerror if named else cause)  # type: ignore[attr-defined]
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def open_image(content: bytes) -> Image.Image:
    """Return an image of which only the head has been read; its ``size`` is (width, height).

    Raises:
        DamagedImage: if it is no PNG, JPEG or BMP, or so large that it may be a decompression bomb.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # of tags that are no matter of pixels
            return Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
    except _DAMAGED as error:
        raise _damage(error, content) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an opened image decoded to 8-bit RGB; grey, palette and transparent ones are converted.

    Raises:
        DamagedImage: if the file is truncated or corrupt, or has more than 8 bits per channel.
    """
    if image.mode.startswith(_WIDE_MODES):  # the conversion would cut values off instead of scaling them
        raise DamagedImage("it has more than 8 bits per channel, and only 8 are accepted")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # a palette's transparency, which RGB has not
            return image.convert("RGB")
    except _DAMAGED as error:
        raise _damage(error, b"?") from error


def _damage(error: Exception, content: bytes) -> DamagedImage:
    if isinstance(error, UnidentifiedImageError):  # its text shows the address of our buffer
        if not content:
            return DamagedImage("it is empty")
        other = next((name for name, begin in _OTHER_FORMATS.items() if begin.match(content)), None)
        accepted = f"{', '.join(IMAGE_FORMATS[:-1])} and {IMAGE_FORMATS[-1]} are accepted"
        return DamagedImage(
            f"it is {other}, but only {accepted}" if other else f"no {', '.join(IMAGE_FORMATS)} in it"
        )
    return DamagedImage(plain_error(error))


def centre_cropped(image: Image.Image, size: int) -> Image.Image:
    """Return the square of ``size`` pixels in the middle; a smaller image gives the largest square that it has.

    The corner lies at ``round((length - size) / 2)``, half to even, as torchvision's ``CenterCrop`` has it.
    """
    width, height = image.size
    size = min(size, height, width)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def prepared(image: Image.Image, steps: Steps) -> NDArray[np.uint8]:
    """Return an 8-bit RGB image as uint8 ``(3, H, W)`` after ``steps``; resizing is bilinear with antialiasing."""
    if steps.first_crop is not None:
        image = centre_cropped(image, steps.first_crop)
    height, width = steps.resize
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    if steps.crop is not None:
        image = centre_cropped(image, steps.crop)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def read_content(path: str) -> bytes:
    """Return the bytes of an image file.

    Raises:
        DamagedImage: if it is not a regular file, absurdly large, or cannot be read.
    """
    try:
        state = os.stat(path)  # noqa: PTH116 - a hundred thousand times, without an object each
        if not stat.S_ISREG(state.st_mode):
            raise DamagedImage("it is no regular file")
        if state.st_size > MAX_FILE_BYTES:
            raise DamagedImage(f"{state.st_size:,} bytes are too many for an image")
        with open(path, "rb") as stream:  # noqa: PTH123
            return stream.read()
    except (OSError, ValueError) as error:
        raise DamagedImage(plain_error(error)) from error


def decode_files(paths: Sequence[str], digests: Sequence[str], steps: Steps) -> list[bytes | str | None]:
    """Return for each file its pixels (uint8 ``(3, H, W)``), or why it cannot be decoded.

    ``digests`` are the SHA-256 in hexadecimal that the files had when they were looked at ("": could not be
    read then); None stands for a file that has changed since.
    """
    return [_decode_file(path, digest, steps) for path, digest in zip(paths, digests, strict=True)]


def _decode_file(path: str, digest: str, steps: Steps) -> bytes | str | None:
    try:
        content = read_content(path)
    except DamagedImage as error:
        return None if digest else str(error)
    if hashlib.sha256(content).hexdigest() != digest:
        return None
    try:
        image = open_image(content)
        return prepared(to_rgb(image), steps).tobytes()
    except DamagedImage as error:
        return str(error)
