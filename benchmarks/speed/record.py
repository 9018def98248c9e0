"""The record of a run: machine, versions, commit, settings, every raw time."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.libraries import LIBRARIES
from benchmarks.speed.rows import Row, markdown
from robust_core.storage import write_json, write_whole
from robust_core.training.machine import cpu_flags, describe_software, processor_name
from robust_core.training.rundir import commit_of_source

__all__ = ["default_path", "describe_machine", "write_record"]

ROOT = Path(__file__).resolve().parents[2]


def _versions() -> dict[str, str]:
    found = {}
    for name in (*LIBRARIES, "torchcam", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what a reader needs to judge the times: processor, units, threads, versions, commit."""
    commit = commit_of_source("packages", "benchmarks/speed")
    return {
        "processor": processor_name(device),
        "host_processor": processor_name("cpu"),
        "flags": [
            flag for flag in sorted(cpu_flags()) if flag.startswith(("avx", "amx", "fma", "bf16", "sve"))
        ],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "software": describe_software(),
        "libraries": _versions(),
        "tf32_convolutions": torch.backends.cudnn.allow_tf32 if device.type == "cuda" else None,
        "commit": commit.removesuffix("+"),
        "uncommitted_changes": commit.endswith("+"),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def default_path(machine: dict[str, Any]) -> Path:
    """Return ``benchmarks/results/speed-<processor>-<cores>-cores.json``."""
    words = re.findall(r"[a-z0-9.@]+", re.sub(r"\((r|tm)\)", " ", machine["processor"].lower()))
    slug = "-".join(
        word.replace("@", "").strip(".") for word in words if word not in ("cpu", "processor", "@")
    )
    return ROOT / "benchmarks" / "results" / f"speed-{slug}-{machine['cores']}-cores.json"


def write_record(path: Path, machine: dict[str, Any], settings: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write the JSON record and, beside it, its table in Markdown."""
    record = {"machine": machine, "settings": settings, "rows": [row.to_dict() for row in rows]}
    write_json(path, record)
    where = f"{machine['processor']}, {machine['threads']} threads, torch {machine['software']['torch']}"
    write_whole(path.with_suffix(".md"), f"{where}, commit {machine['commit'][:12]}\n\n{markdown(rows)}\n")
