"""Checkpoints: written whole, named in a manifest with their SHA-256, loaded without unpickling objects.

The manifest comes last, so a file that it does not name is not a checkpoint. The two newest are kept.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from robust_core.errors import UserError
from robust_core.models.weights import read_plain
from robust_core.storage import file_digest, write_json, write_tensors

__all__ = ["CheckpointStore"]

KEPT = 2


class CheckpointStore:
    """The folder of a run's checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def _manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    def _manifest(self) -> list[dict[str, Any]]:
        try:
            entries = json.loads(self._manifest_path.read_text(encoding="utf8"))["checkpoints"]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError):
            warnings.warn(f"{self._manifest_path} is damaged: no checkpoint can be trusted", stacklevel=3)
            return []
        return list(entries)

    def save(self, state: dict[str, Any], step: int) -> Path:
        """Write the state after ``step`` steps and name it in the manifest; returns the file.

        Raises:
            UserError: if there is no space; earlier checkpoints are untouched.
        """
        path = self.folder / f"step-{step:08d}.pt"
        write_tensors(path, state)
        entry = {"file": path.name, "step": step, "sha256": file_digest(path), "bytes": path.stat().st_size}
        entries = [old for old in self._manifest() if old["step"] != step] + [entry]
        kept = sorted(entries, key=lambda item: int(item["step"]))[-KEPT:]
        write_json(self._manifest_path, {"checkpoints": kept})
        names = {item["file"] for item in kept}
        for old in self.folder.glob("step-*.pt"):
            if old.name not in names:
                old.unlink()
        return path

    def latest(self, device: str = "cpu") -> dict[str, Any] | None:
        """Return the newest whole state, or None; a damaged file is named and the one before is taken.

        Raises:
            UserError: if checkpoints exist but none of them is whole, or one holds more than plain values.
        """
        entries = sorted(self._manifest(), key=lambda item: int(item["step"]), reverse=True)
        for entry in entries:
            path = self.folder / str(entry["file"])
            problem = _damage(path, entry)
            if not problem:
                state: dict[str, Any] = read_plain(path, device)
                return state
            warnings.warn(f"{path}: {problem}; falling back to an earlier checkpoint", stacklevel=2)
        if entries:
            raise UserError(
                f"No checkpoint in '{self.folder}' is whole; start the run anew in another --run-dir."
            )
        return None

    def latest_step(self) -> int:
        """Return the step of the newest checkpoint named in the manifest (0 without one)."""
        return max((int(entry["step"]) for entry in self._manifest()), default=0)


def _damage(path: Path, entry: dict[str, Any]) -> str:
    if not path.is_file():
        return "missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{path.stat().st_size} bytes instead of {entry['bytes']}"
    if file_digest(path) != entry["sha256"]:
        return "its checksum is wrong"
    return ""
