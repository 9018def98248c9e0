"""What the machine offers, resolved once at the start of a run, stored, and used again on resume.

On one machine float32 and bfloat16 runs are equal to the bit across processes; another thread count,
instruction set, device or torch version is not, so all of these are part of the record.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robust_core.errors import RESTORE_OR_ANEW, UserError

__all__ = [
    "Machine",
    "bf16_units",
    "can_compile",
    "cpu_flags",
    "describe_software",
    "processor_name",
    "resolve_device",
    "resolve_machine",
    "resolve_precision",
    "resumed_machine",
]

COMPILE_MIN_STEPS = 500
"""Below this many steps a compilation costs more than it gains."""


@dataclass(frozen=True)
class Machine:
    """The resolved settings of a run: everything that decides bits besides the configuration."""

    device: str
    threads: int
    precision: str
    train_precision: str
    compile: bool
    processor: str
    torch: str
    processes: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict for ``config.json``."""
        return asdict(self)


def cpu_flags() -> frozenset[str]:
    """Return the flags of the processor, none where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    line = next((row for row in text.splitlines() if row.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())


def bf16_units(device: torch.device | str) -> bool:
    """Return whether the device multiplies bfloat16 natively (elsewhere it is emulated and slower)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(torch.device(device))[0] >= 8
    return bool(cpu_flags() & {"amx_bf16", "avx512_bf16", "bf16"})


def resolve_precision(wanted: str, device: torch.device | str) -> tuple[str, str]:
    """Return ``("float32" | "bfloat16", one line that says why)`` for ``auto``, ``float32`` or ``bf16``.

    Raises:
        UserError: for another word.
    """
    if wanted in ("float32", "bf16", "bfloat16"):
        name = "float32" if wanted == "float32" else "bfloat16"
        return name, f"attack precision {name}, as asked for"
    if wanted != "auto":
        raise UserError(f"Precision '{wanted}' is unknown; use auto, float32 or bf16.")
    if bf16_units(device):
        return "bfloat16", "attack precision bfloat16: the processor multiplies it natively"
    return "float32", "attack precision float32: the processor has no bfloat16 units"


def processor_name(device: torch.device | str = "cpu") -> str:
    """Return the model name of the processor that computes."""
    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_name(torch.device(device)))
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                capability = torch.backends.cpu.get_cpu_capability()
                return f"{line.partition(':')[2].strip()} ({capability})"
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe_software() -> dict[str, str]:
    """Return the versions that a record of a run names."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.release()}",
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def resolve_device(wanted: str) -> str:
    """Return ``cpu`` or ``cuda:K`` for a device's name; ``cuda`` and ``auto`` take the GPU of this process.

    Raises:
        UserError: for a device that does not exist.
    """
    if wanted == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"Device '{wanted}' is unknown; use cpu, cuda, cuda:0 or auto.") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                f"Device '{wanted}' was asked for but torch sees no CUDA device; use --device cpu."
            )
        if ":" not in wanted:
            return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"Device '{wanted}' does not exist; this machine has {torch.cuda.device_count()}."
            )
    elif device.type != "cpu":
        raise UserError(f"Device '{wanted}' is not supported; use cpu or cuda.")
    return str(device)


def can_compile(device: str) -> tuple[bool, str]:
    """Return whether ``torch.compile`` works for the device, and if not, why."""
    if torch.device(device).type == "cuda":
        if find_spec("triton") is None:
            return False, "the package triton was not found"
        # as Triton itself looks for the compiler of its launchers
        names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
        found = any(shutil.which(name) for name in names)
        return found, "" if found else "no C compiler was found"
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception:
        return False, "no C++ compiler was found"
    return True, ""


def resolve_machine(
    *,
    device: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
    train_precision: str = "float32",
    compile: bool | None = None,
    total_steps: int = 0,
) -> tuple[Machine, list[str]]:
    """Return the resolved machine and the lines to print about it.

    ``compile=None`` compiles where it pays: bfloat16 or CUDA, at least 500 steps.

    Raises:
        UserError: for a device or a precision that does not exist.
    """
    resolved = resolve_device(device)
    notes: list[str] = []
    name, why = resolve_precision(precision, resolved)
    notes.append(why)
    train_name, _ = resolve_precision(train_precision, resolved)
    pays = total_steps >= COMPILE_MIN_STEPS and (name == "bfloat16" or resolved.startswith("cuda"))
    wants_compile = pays if compile is None else compile
    if wants_compile:
        wants_compile, reason = can_compile(resolved)
        if reason:
            notes.append(f"{reason}: the attack runs uncompiled")
    machine = Machine(
        device=resolved,
        threads=threads or torch.get_num_threads(),
        precision=name,
        train_precision=train_name,
        compile=wants_compile,
        processor=processor_name(resolved),
        torch=torch.__version__,
        processes=int(os.environ.get("WORLD_SIZE", "1")),
    )
    return machine, notes


# What a stored setting may be, and how that is told.
_STORED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "device": (
        lambda value: isinstance(value, str) and re.fullmatch(r"(cpu|cuda)(:\d+)?", value) is not None,
        "cpu or cuda:N",
    ),
    "threads": (lambda value: type(value) is int and 1 <= value <= 1024, "1 to 1024"),
    "precision": (lambda value: value in ("float32", "bfloat16"), "float32 or bfloat16"),
    "train_precision": (lambda value: value in ("float32", "bfloat16"), "float32 or bfloat16"),
    "compile": (lambda value: isinstance(value, bool), "true or false"),
}


def _check_stored(stored: Any) -> None:
    """Refuse a stored machine that no run can have written."""
    if not isinstance(stored, dict):
        raise UserError(f'The run\'s config.json has no settings under "machine"; {RESTORE_OR_ANEW}')
    for name, (fits, expected) in _STORED.items():
        if name not in stored:
            raise UserError(f'The run\'s config.json has no {name} under "machine"; {RESTORE_OR_ANEW}')
        if not fits(stored[name]):
            raise UserError(
                f'The run\'s config.json has {name} {stored[name]!r} under "machine"; '
                f"expected {expected}; {RESTORE_OR_ANEW}"
            )


def _resumed_device(stored: str) -> str:
    """Return the device that takes the stored one's place here."""
    if not stored.startswith("cuda"):
        return stored
    if not torch.cuda.is_available():
        return "cpu"
    if "LOCAL_RANK" in os.environ:
        return resolve_device("cuda")  # the stored one is the first process's
    there = (torch.device(stored).index or 0) < torch.cuda.device_count()
    return stored if there else "cuda:0"


def resumed_machine(stored: Any) -> tuple[Machine, list[str]]:
    """Return the machine of a stored run as far as this one can offer it, and what that changes.

    The stored thread count, precision and compilation are used again; whatever differs is said in one warning.

    Raises:
        UserError: if a stored setting is missing or can be none of a run's.
    """
    _check_stored(stored)
    lost: list[str] = []
    device = _resumed_device(stored["device"])
    # which of several GPUs a process of torchrun has is no loss
    if device != stored["device"] and (device == "cpu" or "LOCAL_RANK" not in os.environ):
        lost.append(f"device {stored['device']} -> {device}")
    compile = bool(stored["compile"])
    if compile and not can_compile(device)[0]:
        lost.append("compiled -> uncompiled")
        compile = False
    now = Machine(
        device=device,
        threads=stored["threads"],
        precision=stored["precision"],
        train_precision=stored["train_precision"],
        compile=compile,
        processor=processor_name(device),
        torch=torch.__version__,
        processes=int(os.environ.get("WORLD_SIZE", "1")),
    )
    for field in ("processor", "torch", "processes"):
        if stored.get(field) != getattr(now, field):
            lost.append(f"{field} {stored.get(field)} -> {getattr(now, field)}")
    if not lost:
        return now, []
    return now, [f"warning: equality to the bit with the first part of this run is lost: {'; '.join(lost)}"]
