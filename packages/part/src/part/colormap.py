"""The jet colour map in closed form, which the published mask rule looks weights up in."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["NAN_INDEX", "jet_index", "jet_lut", "jet_lut_with_nan"]

NAN_INDEX = 256  # the colour index of NaN, one past the map


def jet_lut() -> Tensor:
    """Return the 256 colours of the jet map, float64 ``(256, 3)``: red, green, blue in [0, 1].

    Each channel is a trapezoid of ``t = i / 255``; red and blue end and start at one half.
    """
    t = torch.arange(256, dtype=torch.float64) / 255.0
    red = torch.minimum((t - 0.35) / 0.31, 1.0 - 0.5 * (t - 0.89) / 0.11)
    green = torch.minimum((t - 0.125) / 0.25, 1.0 - (t - 0.64) / 0.27)
    blue = torch.minimum(0.5 + 0.5 * t / 0.11, 1.0 - (t - 0.34) / 0.31)
    return torch.stack([red, green, blue], dim=1).clamp(0.0, 1.0)


@lru_cache(maxsize=8)
def jet_lut_with_nan(device: torch.device) -> Tensor:
    """Return :func:`jet_lut` with black appended for NaN, ``(257, 3)``; cached: do not write to it."""
    with torch.inference_mode(False):
        return torch.cat([jet_lut(), torch.zeros(1, 3, dtype=torch.float64)]).to(device)


def jet_index(heat: Tensor) -> Tensor:
    """Return the jet index of each heat value: ``floor(256 heat)`` in float32, at most 255; NaN gives 256."""
    scaled = (heat.float() * 256.0).clamp(max=255.0)
    return scaled.nan_to_num(nan=float(NAN_INDEX)).long()
