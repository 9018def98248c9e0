"""What a run says at its start about optional packages that are not installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robust_core.attacks import autoattack_available
from robust_core.config import flag_of
from robust_core.errors import UserError

__all__ = ["autoattack_notes"]


def autoattack_notes(
    images: int, given: Mapping[str, Any], package: str, *, setting: str = "aa_images"
) -> list[str]:
    """Return what to print about AutoAttack on so many test images (0: none), where its package is not installed.

    ``given`` are the user's settings; ``package`` names the paper's, whose extra ``eval`` brings it;
    ``setting`` says how many images.

    Raises:
        UserError: if the user asked for it by that setting.
    """
    if not images or autoattack_available():
        return []
    remedy = f"pip install 'packages/{package}[eval]'"
    if setting in given:
        raise UserError(f"{flag_of(setting)} {images} needs the package pyautoattack: {remedy}.")
    return [f"AutoAttack will not be run: its package is not installed ({remedy})."]
