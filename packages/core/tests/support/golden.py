"""Reference arrays of the official implementations, and the weights recipe that they were computed with.

Read from ``$GOLDEN_DIR/<paper>/<file>`` when that is set, otherwise from the copies beside the tests.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

__all__ = [
    "MODEL_NAMES",
    "fingerprint",
    "golden_dir",
    "in_both_precisions",
    "load",
    "load_json",
    "recipe_model",
    "recipe_state_dict",
]

ROOT = Path(os.environ["GOLDEN_DIR"]).resolve() if os.environ.get("GOLDEN_DIR") else None
PACKAGES = Path(__file__).resolve().parents[3]
COPIES = ("core", "part", "ancra", "gdro_at")
# The names of the golden files and ours.
MODEL_NAMES = {"resnet18": "resnet18", "wrn34_10": "wrn-34-10", "preact18": "preactresnet18"}


def golden_dir(paper: str, file: str = "models.json") -> Path:
    """Return the folder that holds ``file`` of one paper's arrays."""
    if ROOT is not None:
        return ROOT / paper
    folders = [PACKAGES / package / "tests" / "golden" / paper for package in COPIES]
    for folder in folders:
        if (folder / file).is_file():
            return folder
    raise FileNotFoundError(f"{file} of {paper} is in none of: {', '.join(map(str, folders))}")


@functools.cache
def load(paper: str, file: str) -> dict[str, np.ndarray]:
    """Return the arrays of one ``.npz`` file by name; treat them as read-only, they are shared."""
    with np.load(golden_dir(paper, file) / file) as arrays:
        return {name: arrays[name] for name in arrays.files}


@functools.cache
def load_json(paper: str, file: str) -> Any:
    """Return the contents of one ``.json`` file; treat them as read-only, they are shared."""
    return json.loads((golden_dir(paper, file) / file).read_text(encoding="utf8"))


def in_both_precisions(names: Iterable[str], dtypes: Iterable[Any] = ("f32", "f64")) -> list[Any]:
    """Return parameters (name, dtype) of a test; a WideResNet in float64 takes ten seconds and more."""
    return [
        pytest.param(name, dtype, marks=[pytest.mark.slow] if "wrn" in name and "64" in str(dtype) else [])
        for name in names
        for dtype in dtypes
    ]


def _recipe_tensor(name: str, shape: list[int], g: float) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode("utf8")))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    if name.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif name.endswith(("running_mean", ".bias")):
        values = 0.05 * rng.standard_normal(shape)
    elif len(shape) == 1:
        values = rng.uniform(0.5, 1.5, shape)
    else:
        values = rng.standard_normal(shape)
        values -= values.mean(axis=tuple(range(1, len(shape))), keepdims=True)
        values *= np.sqrt((g if len(shape) == 4 else 4.0) / np.prod(shape[1:]))
    return values.astype(np.float32)


def recipe_state_dict(entry: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Return the state dict of one entry of ``models.json``; every tensor's checksum is verified.

    The values are float32 numbers whatever ``dtype`` they are stored in.
    """
    state = {}
    for name, shape, _, crc32 in entry["tensors"]:
        values = _recipe_tensor(name, shape, entry["g"])
        if zlib.crc32(np.ascontiguousarray(values).tobytes()) != crc32:
            raise AssertionError(f"the weights recipe went wrong at {name}")
        tensor = torch.from_numpy(np.asarray(values))
        state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return state


@functools.lru_cache(maxsize=3)  # networks are large
def _cached_model(name: str, paper: str, dtype: torch.dtype) -> torch.nn.Module:
    from robust_core.models import build_model, load_state

    state = recipe_state_dict(load_json(paper, "models.json")[name], dtype)
    head = next(key for key in state if key in ("linear.weight", "fc.weight"))
    model = build_model(
        MODEL_NAMES[name], len(state[head]), image_size=64 if name == "preact18" else 32, seed=0
    )
    model.to(dtype)
    load_state(model, state, source=f"recipe of {name}")
    return model.eval()


def recipe_model(name: str, dtype: torch.dtype = torch.float32, paper: str = "part") -> torch.nn.Module:
    """Return our network with the recipe's weights, in evaluation mode; a fresh copy of a cached one."""
    return copy.deepcopy(_cached_model(name, paper, dtype))


def fingerprint(array: np.ndarray | torch.Tensor) -> np.ndarray:
    """Return ``[sum a, sum a^2, min a, max a, sum_i a_i cos(0.37 i)]`` in float64, C order."""
    flat = np.asarray(torch.as_tensor(array).detach().cpu().double()).reshape(-1)
    wave = np.cos(0.37 * np.arange(flat.size))
    return np.array([flat.sum(), (flat**2).sum(), flat.min(), flat.max(), (flat * wave).sum()])
