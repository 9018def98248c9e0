"""Networks and inputs of the golden recipe of ``gdro_at/`` (another one than that of ``part/`` and ``ancra/``)."""

from __future__ import annotations

import zlib
from typing import Any

import golden
import numpy as np
import torch
from torch import Tensor, nn

DTYPES = {"f32": torch.float32, "f64": torch.float64}


def recipe_state(model: nn.Module, head_scale: Any = None, head_bias: Any = None) -> dict[str, Tensor]:
    """Return the recipe's state dict (float32) for a network whose head is ``fc`` or ``linear``."""
    state = {}
    for name, tensor in model.state_dict().items():
        shape = tuple(tensor.shape)
        rng = np.random.default_rng(zlib.crc32(name.encode("utf8")))
        head = name.startswith(("fc.", "linear."))
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        if name.endswith("running_var"):
            values = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("running_mean"):
            values = 0.1 * rng.standard_normal(shape)
        elif name.endswith(".bias"):
            values = head_bias if head and head_bias is not None else 0.1 * rng.standard_normal(shape)
        elif len(shape) == 1:
            values = rng.uniform(0.5, 1.5, shape)
        elif len(shape) == 4:
            values = rng.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
        else:
            values = (rng.standard_normal(shape) * np.sqrt(1.0 / shape[1])).astype(np.float32)
            values = values if head_scale is None else values * np.float32(head_scale)
        state[name] = torch.from_numpy(np.asarray(values, dtype=np.float32))
    return state


def filled(model: nn.Module, arrays: dict[str, np.ndarray], suffix: str) -> nn.Module:
    """Return the model with the recipe's weights for one golden file, in the precision of ``suffix``, in eval mode."""
    model.load_state_dict(recipe_state(model, arrays.get("head_scale"), arrays.get("head_bias")))
    return model.to(DTYPES[suffix]).eval()


def torchvision_resnet18(arrays: dict[str, np.ndarray], suffix: str) -> nn.Module:
    """Return the recipe's ResNet-18 with two classes."""
    from torchvision.models import resnet18

    return filled(resnet18(weights=None, num_classes=2), arrays, suffix)


def enlarged(base: np.ndarray, factor: int) -> np.ndarray:
    """Return images whose pixels are repeated ``factor`` times along height and width."""
    return base.repeat(factor, axis=-2).repeat(factor, axis=-1)


def images_of(arrays: dict[str, np.ndarray], suffix: str, name: str = "x_base") -> Tensor:
    """Return the clean images of a golden file."""
    pixels = enlarged(arrays[name], int(arrays["x_factor"])).astype(np.float32) / np.float32(255)
    return torch.from_numpy(pixels).to(DTYPES[suffix])


def normal_noise(values: np.ndarray, suffix: str) -> Tensor:
    """Return standard-normal draws of an int8 array."""
    return torch.from_numpy(values.astype(np.float64) / 32).to(DTYPES[suffix])


def uniform_noise(values: np.ndarray, radius: float, suffix: str) -> Tensor:
    """Return uniform draws in ``+-radius`` of an int8 array (float32 numbers in both precisions)."""
    return torch.from_numpy((values.astype(np.float64) / 127 * radius).astype(np.float32)).to(DTYPES[suffix])


def load(file: str) -> dict[str, np.ndarray]:
    """Return the arrays of one golden file."""
    return golden.load("gdro_at", file)


def close(found: Any, reference: np.ndarray, tolerance: float) -> None:
    """Compare relative to the largest absolute value of the reference."""
    ours = np.asarray(torch.as_tensor(found).detach(), dtype=np.float64)
    wanted = np.asarray(reference, dtype=np.float64)
    assert ours.shape == wanted.shape
    assert np.array_equal(np.isnan(ours), np.isnan(wanted))
    largest = np.nanmax(np.abs(wanted)) if np.isfinite(wanted).any() else 0.0
    worst = np.nanmax(np.abs(ours - wanted), initial=0.0)
    assert worst <= tolerance * largest, f"{worst:.3g} of {largest:.3g}"
