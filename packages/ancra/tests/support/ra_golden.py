"""Networks of the golden recipe, with reverse attention where the name ends in ``_ra``."""

from __future__ import annotations

import copy
import functools
from typing import Any

import golden
import numpy as np
import torch
from torch import Tensor

from ancra.networks import build_network
from robust_core.models import Network, load_state

DTYPES = {"f32": torch.float32, "f64": torch.float64}
CR, BETA, ZETA = 2.0, 6.0, 3.0
EPS, STEP = 8 / 255, 0.007


@functools.lru_cache(maxsize=2)  # a WideResNet in float64 takes 0.4 GB
def _model(name: str, suffix: str) -> Network:
    entry = golden.load_json("ancra", "models.json")[name]
    base = name.removesuffix("_ra")
    classes, size = (200, 64) if base == "preact18" else (10, 32)
    attention = "reverse" if name.endswith("_ra") else "none"
    model = build_network(golden.MODEL_NAMES[base], classes, image_size=size, attention=attention, seed=0).to(
        DTYPES[suffix]
    )
    load_state(model, golden.recipe_state_dict(entry, DTYPES[suffix]), source=f"recipe of {name}")
    return model.eval()


def model_of(name: str, suffix: str) -> Network:
    """Return a fresh network with the recipe's weights, in evaluation mode."""
    return copy.deepcopy(_model(name, suffix))


def inputs(suffix: str, *, size: int = 32) -> dict[str, Tensor]:
    """Return images, labels and noise of one precision: ``x``, ``y``, ``z``, ``z2``, ``u``."""
    arrays = golden.load("ancra", "inputs.npz")
    if size == 64:
        pixels = arrays["x64_u8"].astype(np.float32) / np.float32(255)
        found: dict[str, Any] = {"x": pixels, "y": arrays["y64"], "z": arrays["z_normal_64"]}
    else:
        found = {"x": arrays["x"], "y": arrays["y"], "z": arrays["z_normal"], "z2": arrays["z_normal_2"]}
        found["u"] = arrays["u_uniform"]
    tensors = {key: torch.from_numpy(value) for key, value in found.items()}
    return {key: value if key == "y" else value.to(DTYPES[suffix]) for key, value in tensors.items()}


def close(found: Any, reference: np.ndarray, tolerance: float) -> None:
    """Compare relative to the largest absolute value of the reference."""
    ours = np.asarray(torch.as_tensor(found).detach(), dtype=np.float64)
    assert ours.shape == np.shape(reference)
    largest = np.nanmax(np.abs(reference))
    assert np.nanmax(np.abs(ours - reference)) <= tolerance * largest
