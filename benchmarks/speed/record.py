"""The record of a run: machine, versions, commit, settings, every raw time."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.libraries import LIBRARIES
from benchmarks.speed.rows import Row, markdown
from benchmarks.speed.setting import cpu_flags
from robust_core.training.machine import describe_software, processor_name

__all__ = ["default_path", "describe_machine", "write_record"]

ROOT = Path(__file__).resolve().parents[2]


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


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
    return {
        "processor": processor_name(device),
        "host_processor": processor_name("cpu"),
        "flags": [flag for flag in cpu_flags() if flag.startswith(("avx", "amx", "fma", "bf16", "sve"))],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "software": describe_software(),
        "libraries": _versions(),
        "tf32_convolutions": torch.backends.cudnn.allow_tf32 if device.type == "cuda" else None,
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", "packages", "benchmarks/speed")),
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
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine, "settings": settings, "rows": [row.to_dict() for row in rows]}
    path.write_text(json.dumps(record, indent=1) + "\n")
    where = f"{machine['processor']}, {machine['threads']} threads, torch {machine['software']['torch']}"
    path.with_suffix(".md").write_text(f"{where}, commit {machine['commit'][:12]}\n\n{markdown(rows)}\n")
