"""The test that a call leaves no trace: on a model, and on the process's random states and modes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["unchanged"]

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


def _tensor_snapshot(tensor: Tensor) -> dict[str, Any]:
    return {
        "identity": id(tensor),
        "storage": tensor.data_ptr(),
        "version": tensor._version,
        "value": tensor.detach().clone(),
        "requires_grad": tensor.requires_grad,
        "hooks": len(tensor._backward_hooks or ()),
        "grad identity": id(tensor.grad) if tensor.is_leaf else None,
        "grad": tensor.grad.clone() if tensor.is_leaf and tensor.grad is not None else None,
    }


def _model_snapshot(model: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[f"mode of {name or 'the model'}"] = module.training
        found[f"attributes of {name or 'the model'}"] = sorted(vars(module))
        for kind in HOOKS:
            found[f"{kind} of {name or 'the model'}"] = list(getattr(module, kind))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        for what, value in _tensor_snapshot(tensor).items():
            found[f"{what} of {name}"] = value
    return found


def _process_snapshot() -> dict[str, Any]:
    found: dict[str, Any] = {
        "torch's random state": torch.get_rng_state(),
        "numpy's random state": repr(np.random.get_state(legacy=False)),  # noqa: NPY002
        "numpy's random array": np.random.get_state()[1].copy(),  # type: ignore[index]  # noqa: NPY002
        "Python's random state": random.getstate(),
        "gradient mode": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "number of threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn benchmark": torch.backends.cudnn.benchmark,
    }
    if torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            found[f"random state of cuda:{device}"] = torch.cuda.get_rng_state(device)
    return found


def _equal(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return before.shape == after.shape and bool(((before == after) | (before != before)).all())
    if isinstance(before, np.ndarray):
        return bool(np.array_equal(before, after))
    return bool(before == after)


@contextlib.contextmanager
def unchanged(*models: nn.Module) -> Iterator[None]:
    """Fail if the block changes anything of the models or of the global state, also if it raises.

    Looked at: parameters and buffers (identity, memory, value, writes, ``requires_grad``, hooks,
    ``.grad``), every sub-module's mode, hooks and attributes, random states, gradient mode, global flags.
    """
    before = [_process_snapshot(), *map(_model_snapshot, models)]
    try:
        yield
    finally:
        after = [_process_snapshot(), *map(_model_snapshot, models)]
        changed = [
            name
            for old, new in zip(before, after, strict=True)
            for name in sorted(old.keys() | new.keys())
            if name not in old or name not in new or not _equal(old[name], new[name])
        ]
        assert not changed, f"changed: {', '.join(changed)}"
