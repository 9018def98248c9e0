"""Weights from state dicts and files that may come from anywhere: nothing in them is ever executed."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_core.errors import UserError
from robust_core.models.network import Network

__all__ = ["load_state", "load_weights", "read_evaluated_state", "read_plain", "read_state_dict"]

# Keys under which training scripts keep the state dict, and what wrappers leave in front of names.
_NESTS = ("state_dict", "model", "net", "model_state_dict")
_WRAPPERS = ("module.", "_orig_mod.")
# How torch tells its archives from its formats before.
_ZIP = b"PK\x03\x04"
_FOLDER = 0x10  # among the attributes of an archive's part
# How torch's weights-only reader names what it refused, rather than what it could not read.
_SIGNS_OF_OBJECTS = ("GLOBAL", "global", "allowlist", "REDUCE", "BUILD", "instantiate")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load the weights in a checkpoint file into ``model``, in place; the file is only read, never executed.

    Accepts a state dict or a dict that holds one under ``state_dict``, ``model`` or ``net``, with or without
    ``module.`` in front of the names. Raises ``UserError`` if the file is missing, is no checkpoint, or holds
    another architecture or class count, or numbers that no network works with (NaN, complex); the model is
    then unchanged.
    """
    load_state(model, read_state_dict(path), source=str(path))


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint file, on the CPU, under plain names."""
    return _plain_state(read_plain(path), str(path))


def read_evaluated_state(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a file; of a run's checkpoint the average of the weights if it keeps one."""
    content = read_plain(path)
    average = content.get("average") if isinstance(content, dict) else None
    if isinstance(average, dict) and isinstance(average.get("weights"), dict):
        weights: dict[str, Tensor] = average["weights"]
        return weights
    return read_state_dict(path)


def read_plain(path: str | Path, device: str = "cpu") -> Any:
    """Return the tensors and plain values in a file of ``torch.save``; nothing in it is executed.

    Raises:
        UserError: if the file is missing, is no checkpoint, is damaged, or holds other objects.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"There is no checkpoint file {file}; give the path of a file saved with torch.save.")
    try:
        _check_sums(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the reader also warns of what it then refuses
            return torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        if _holds_objects(file, str(error)):
            raise UserError(
                f"{file} is a pickle of Python objects, not a plain checkpoint, and was refused because "
                f"loading it could run code; save model.state_dict() instead of the whole model."
            ) from None
        raise _no_checkpoint(file) from None
    except UserError:
        raise
    except PermissionError:
        raise UserError(f"{file} may not be read; give yourself permission to read it.") from None
    except Exception:  # the reader's errors for damaged files are of many types
        raise _no_checkpoint(file) from None


def _check_sums(file: Path) -> None:
    """Refuse a zip archive, which ``torch.save`` writes, with a part whose CRC-32 is wrong: torch does not look."""
    with file.open("rb") as stream:
        if stream.read(len(_ZIP)) != _ZIP:
            return  # the formats before: they hold no checksums
        with zipfile.ZipFile(stream) as archive:
            parts = archive.infolist()
            has_sums = any(part.CRC for part in parts)  # torch can be told to write none
            damaged = archive.testzip() if has_sums else None
    # torch takes the memory as it is for the content of what calls itself a folder
    folders = (part.filename for part in parts if part.file_size and part.external_attr & _FOLDER)
    if damaged := damaged or next(folders, None):
        raise UserError(f"{file} is damaged (at '{damaged}' inside it); copy it again, or take another copy.")


def _holds_objects(file: Path, message: str) -> bool:
    """Say whether the reader refused objects or a pickle of a protocol that torch.save does not use."""
    with file.open("rb") as stream:
        start = stream.read(2)
    return any(sign in message for sign in _SIGNS_OF_OBJECTS) or start in (
        b"\x80\x03",
        b"\x80\x04",
        b"\x80\x05",
    )


def _no_checkpoint(file: Path) -> UserError:
    return UserError(
        f"{file} is not a checkpoint, or is damaged or cut short; give a file saved with torch.save, "
        f"or copy it again."
    )


def _plain_state(content: Any, source: str) -> dict[str, Tensor]:
    """Return the state dict inside whatever a checkpoint holds, without the prefixes of wrappers."""
    for _ in range(2):  # a state dict may lie one level below another nest
        if not isinstance(content, Mapping) or all(isinstance(value, Tensor) for value in content.values()):
            break
        content = next((content[key] for key in _NESTS if isinstance(content.get(key), Mapping)), None)
    if not isinstance(content, Mapping) or not content:
        raise _no_state(source)
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise _no_state(source)
        state[key] = value
    for prefix in _WRAPPERS * 2:  # in either order
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _no_state(source: str) -> UserError:
    keys = " or ".join(_NESTS[:3])
    return UserError(
        f"{source} holds no state dict; expected names with tensors, directly or under the key {keys}; "
        f"save model.state_dict()."
    )


def load_state(model: nn.Module, state_dict: Mapping[str, Any], source: str = "The state dict") -> None:
    """Load a state dict (plain, nested or prefixed) into ``model``, in place.

    ``source`` begins the error messages. Raises ``UserError`` for another architecture or class count, and for
    values that are no finite numbers of the network's kind, and leaves the model unchanged then.
    """
    state = _plain_state(state_dict, source)
    expected = model.state_dict()
    if isinstance(model, Network):
        state = _renamed(state, expected, model.aliases)
    optional = tuple(f"{name}." for name in model.unused) if isinstance(model, Network) else ()
    missing = [
        name
        for name in expected
        if name not in state and not name.endswith("num_batches_tracked") and not name.startswith(optional)
    ]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        raise _other_architecture(model, source, missing, unexpected)
    for name, value in state.items():
        _check_kind(name, value, source)
    _check_shapes(model, state, expected, source)
    for name, value in state.items():
        _check_values(name, value, expected[name], source)
    model.load_state_dict(state, strict=False)


def _renamed(
    state: dict[str, Tensor], expected: Mapping[str, Tensor], aliases: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the state under our names where another official code has its own."""
    renamed = {}
    for name, value in state.items():
        for theirs, ours in aliases.items():
            if name not in expected and name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
        renamed[name] = value
    return renamed


def _model_name(model: nn.Module) -> str:
    return model.name if isinstance(model, Network) else type(model).__name__


def _other_architecture(
    model: nn.Module, source: str, missing: list[str], unexpected: list[str]
) -> UserError:
    parts = []
    for word, names in (("lacks", missing), ("has an unexpected", unexpected)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            parts.append(f"{word} '{names[0]}'{more}")
    return UserError(
        f"{source} is of another architecture than {_model_name(model)}: it {' and '.join(parts)}; "
        f"choose the architecture that it was trained with."
    )


def _check_kind(name: str, value: Tensor, source: str) -> None:
    """Refuse a tensor whose numbers do not simply lie in memory."""
    kind = "a nested" if value.is_nested else "a quantised" if value.is_quantized else None
    if kind is None and value.layout != torch.strided:
        kind = "a sparse"
    if kind is None and value.is_meta:
        kind = "an empty (meta)"
    if kind is not None:
        raise UserError(
            f"{source} holds {kind} tensor as '{name}', expected a plain one; save the weights of the float "
            f"network as plain (dense) tensors."
        )


def _check_values(name: str, value: Tensor, expected: Tensor, source: str) -> None:
    """Refuse what torch would cast silently into weights that mean nothing."""
    if value.is_complex() or (expected.is_floating_point() and not value.is_floating_point()):
        raise UserError(
            f"{source} holds {value.dtype} as '{name}', expected {expected.dtype}; save the weights as floats."
        )
    # As the network will hold it: a large float64 may be infinite in float32.
    if value.is_floating_point() and not bool(value.to(expected.dtype).isfinite().all()):
        raise UserError(
            f"{source} holds NaN or infinity in '{name}', expected finite numbers; its training diverged, "
            f"take an earlier checkpoint."
        )


def _check_shapes(
    model: nn.Module, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str
) -> None:
    wrong = [name for name in state if state[name].shape != expected[name].shape]
    if not wrong:
        return
    head = _head_name(model)
    weight = f"{head}.weight"
    if head is not None and set(wrong) <= {weight, f"{head}.bias"}:
        theirs, ours = state[weight].shape, expected[weight].shape
        if theirs != ours and theirs[1:] == ours[1:]:
            raise UserError(
                f"{source} has {theirs[0]} classes, but the model {_model_name(model)} has {ours[0]}; "
                f"choose the dataset that it was trained on or another checkpoint."
            )
    name = wrong[0]
    raise UserError(
        f"{source} is of another architecture than {_model_name(model)}: '{name}' has the shape "
        f"{tuple(state[name].shape)}, expected {tuple(expected[name].shape)}; choose the architecture and "
        f"image size that it was trained with."
    )


def _head_name(model: nn.Module) -> str | None:
    """Return the name of the last linear layer, whose rows are the classes."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return names[-1] if names else None
