"""Checkpoints: written whole, named in a manifest with their SHA-256, loaded without unpickling objects.

The manifest comes last, so a file that it does not name is not a checkpoint. The two newest are kept. While the
manifest cannot be read, nothing is loaded, written or removed: the files beside it may be days of work.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robust_core.errors import UserError
from robust_core.models.weights import read_plain
from robust_core.storage import file_digest, write_json, write_tensors

__all__ = ["CheckpointStore"]

KEPT = 2


def _warn(line: str) -> None:
    print(line, file=sys.stderr)


class CheckpointStore:
    """The folder of a run's checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def _manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    def _manifest(self) -> list[dict[str, Any]]:
        """Return the entries of the manifest; refuse where that would forget checkpoints that are there."""
        files = len(list(self.folder.glob("step-*.pt")))
        try:
            return _entries(json.loads(self._manifest_path.read_text(encoding="utf8")))
        except (FileNotFoundError, NotADirectoryError):
            # a kill within the first checkpoint leaves one file that was not yet named
            problem = "is missing" if files > 1 else ""
        except OSError as error:
            problem = f"cannot be read ({error.strerror})"
        except (ValueError, RecursionError):
            problem = "is damaged" if files else ""
        if not problem:
            return []
        raise UserError(
            f"'{self._manifest_path}' {problem}, so no checkpoint can be trusted; the step-N.pt files beside it are "
            "untouched: restore manifest.json, or start the run anew in another --run-dir."
        )

    def save(self, state: dict[str, Any], step: int) -> Path:
        """Write the state after ``step`` steps and name it in the manifest; returns the file.

        Raises:
            UserError: if there is no space or the manifest cannot be read; earlier checkpoints are untouched.
        """
        before = self._manifest()  # first: a file more beside a manifest that is lost would help nobody
        path = self.folder / _file_name(step)
        write_tensors(path, state)
        entry = {"file": path.name, "step": step, "sha256": file_digest(path), "bytes": path.stat().st_size}
        entries = [old for old in before if old["step"] != step] + [entry]
        kept = sorted(entries, key=lambda item: int(item["step"]))[-KEPT:]
        write_json(self._manifest_path, {"checkpoints": kept})
        names = {item["file"] for item in kept}
        for old in self.folder.glob("step-*.pt"):
            if old.name not in names:
                old.unlink()
        return path

    def latest(self, device: str = "cpu", *, say: Callable[[str], None] = _warn) -> dict[str, Any] | None:
        """Return the newest whole state, or None; ``say`` is told of a damaged file, and the one before is taken.

        Raises:
            UserError: if checkpoints exist but none of them is whole, or one holds more than plain values, or
                the manifest cannot be read.
        """
        damaged: dict[Path, str] = {}
        entries = sorted(self._manifest(), key=lambda item: int(item["step"]), reverse=True)
        for entry in entries:
            path = self.folder / str(entry["file"])
            if problem := _damage(path, entry):
                damaged[path] = problem
                continue
            for other, problem in damaged.items():
                say(
                    f"warning: {other} is damaged ({problem}); "
                    f"falling back to the checkpoint of step {entry['step']}"
                )
            state: dict[str, Any] = read_plain(path, device)
            return state
        if damaged:
            told = ", ".join(f"{path.name}: {problem}" for path, problem in damaged.items())
            raise UserError(
                f"No checkpoint in '{self.folder}' is whole ({told}); start the run anew in another --run-dir."
            )
        return None

    def latest_step(self) -> int:
        """Return the step of the newest checkpoint named in the manifest (0 without one).

        Raises:
            UserError: if the manifest cannot be read.
        """
        return max((int(entry["step"]) for entry in self._manifest()), default=0)

    def latest_path(self) -> Path | None:
        """Return the file of the newest checkpoint named in the manifest; raises as :meth:`latest_step`."""
        step = self.latest_step()
        return self.folder / _file_name(step) if step else None


def _file_name(step: int) -> str:
    return f"step-{step:08d}.pt"


def _entries(manifest: Any) -> list[dict[str, Any]]:
    """Return the entries of what a manifest holds; ``ValueError`` unless it is what :meth:`save` writes."""
    entries = manifest.get("checkpoints") if isinstance(manifest, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError
    for entry in entries:
        kinds = {"file": str, "step": int, "sha256": str, "bytes": int}
        if not isinstance(entry, dict) or any(
            type(entry.get(key)) is not kind for key, kind in kinds.items()
        ):
            raise ValueError
        if entry["step"] < 0 or entry["file"] != _file_name(entry["step"]):
            raise ValueError
    return entries


def _damage(path: Path, entry: dict[str, Any]) -> str:
    if not path.is_file():
        return "missing"
    try:
        if path.stat().st_size != entry["bytes"]:
            return f"{path.stat().st_size} bytes instead of {entry['bytes']}"
        if file_digest(path) != entry["sha256"]:
            return "its checksum is wrong"
    except OSError as error:
        return str(error.strerror)
    return ""
