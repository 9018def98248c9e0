"""Networks by name."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Sequence
from typing import Any

from robust_core.errors import UserError, unknown_name
from robust_core.models.network import Network
from robust_core.models.preact import PreActResNet
from robust_core.models.resnet import resnet, small_resnet
from robust_core.models.wide_resnet import WideResNet
from robust_core.randomness import seeded

__all__ = ["build_model", "check_model_name", "list_models"]

# A full name gives its builder; the groups of the pattern become integer arguments (left out where absent).
_FAMILIES: tuple[tuple[re.Pattern[str], Callable[..., Network]], ...] = (
    (re.compile(r"resnet(?P<depth>8|10)-s2"), small_resnet),
    (re.compile(r"resnet(?P<depth>18|34|50)(?:-w(?P<width>[1-9]\d*))?"), resnet),
    (re.compile(r"preactresnet18(?:-w(?P<width>[1-9]\d*))?"), PreActResNet),
    (re.compile(r"wrn-(?P<depth>\d+)-(?P<width>\d+)"), WideResNet),
)

# Sixteen times the usual width is more than any machine trains; a typing error asks for all of its memory.
_MOST = {"width": 1024, "wrn width": 160, "depth": 1000, "num_classes": 1_000_000, "image_size": 2048}

_EXAMPLES = (
    "preactresnet18",
    "preactresnet18-w16",
    "resnet10-s2",
    "resnet18",
    "resnet18-w16",
    "resnet34",
    "resnet50",
    "resnet8-s2",
    "wrn-16-2",
    "wrn-28-10",
    "wrn-34-10",
)


def list_models() -> list[str]:
    """Return names that ``build_model`` accepts; any width ``-wN`` and any ``wrn-D-K`` exist besides.

    >>> "resnet18" in list_models()
    True
    """
    return list(_EXAMPLES)


def build_model(
    name: str,
    num_classes: int,
    *,
    image_size: int = 32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int | None = None,
) -> Network:
    """Return a freshly initialised network for images ``(N, 3, image_size, image_size)`` in ``[0, 1]``.

    ``image_size`` is a multiple of 32. With ``mean`` and ``std`` (three numbers each) normalisation is the
    first layer. With ``seed`` the weights depend on it alone and the global random state stays as it is;
    without, they are drawn from the global random state. Widths reach to 1024 (``-w``) and 160 (``wrn-D-K``).
    Raises ``UserError`` for an unknown name, an impossible size or one beyond these, and what is no whole
    number.

    >>> import torch
    >>> build_model("resnet8-s2", 10, seed=0)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    given: Any = name
    if not isinstance(given, str):
        raise UserError(f"The model's name is {given!r}, expected a string: give for example 'resnet18'.")
    num_classes = _whole("num_classes", num_classes)
    image_size = _whole("image_size", image_size)
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; a classifier needs at least one class.")
    if image_size < 32 or image_size % 32:
        raise UserError(
            f"image_size is {image_size}; the networks take multiples of 32 pixels, such as 32 or 64."
        )
    for what, value in (("num_classes", num_classes), ("image_size", image_size)):
        if value > _MOST[what]:
            raise UserError(f"{what} is {value}, expected at most {_MOST[what]}: give a smaller number.")
    seed = None if seed is None else _seed(seed)
    _check_normalisation(mean, std)
    builder, sizes = _find(name)
    settings: dict[str, Any] = {**sizes, "image_size": image_size, "mean": mean, "std": std}
    if seed is None:
        return builder(name, num_classes, **settings)
    with seeded(seed):
        return builder(name, num_classes, **settings)


def check_model_name(name: str) -> None:
    """Raise ``UserError`` for a name that :func:`build_model` does not know, without building anything."""
    _find(name)


def _find(name: str) -> tuple[Callable[..., Network], dict[str, int]]:
    for pattern, builder in _FAMILIES:
        if match := pattern.fullmatch(name):
            return builder, _sizes(name, match)
    raise unknown_name("model", name, _EXAMPLES)


def _whole(what: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise UserError(f"{what} is {value!r}, expected a whole number: give it without quotes or a point.")
    return int(value)


def _seed(value: Any) -> int:
    seed = _whole("seed", value)
    if not -(2**63) <= seed < 2**64:  # what torch takes
        raise UserError(f"seed is {seed}, expected at most {2**64 - 1}: give a smaller number.")
    return seed


def _sizes(name: str, match: re.Match[str]) -> dict[str, int]:
    """Return the numbers in a model's name; absurd ones are refused before they are allocated."""
    sizes = {}
    for what, digits in match.groupdict().items():
        if digits is None:
            continue
        most = _MOST["wrn width" if what == "width" and name.startswith("wrn") else what]
        if len(digits.lstrip("0")) > 9 or int(digits) > most:
            shown = name if len(name) <= 60 else f"{name[:60]}..."
            raise UserError(f"Model '{shown}' has {what} {digits[:20]}, expected at most {most}.")
        sizes[what] = int(digits)
    return sizes


def _check_normalisation(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    if (mean is None) != (std is None):
        raise UserError("Normalisation needs both mean and std; give both or neither.")
    if mean is None or std is None:
        return
    given: tuple[Any, Any] = (mean, std)
    if not all(_three_numbers(values) for values in given) or min(std) <= 0:
        raise UserError(f"mean is {mean} and std {std}; expected three numbers each, every std above 0.")


def _three_numbers(values: Any) -> bool:
    return (
        isinstance(values, Sequence)
        and len(values) == 3
        and all(isinstance(number, numbers.Real) and math.isfinite(number) for number in values)
    )
