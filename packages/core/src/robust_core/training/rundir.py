"""The run directory: everything a run is, in one place, from which it resumes and is reported.

``config.json`` (settings, machine, data), ``metrics.jsonl`` (nothing that depends on the clock),
``timings.jsonl``, ``checkpoints/``, ``evaluation/``, ``report/``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from robust_core.errors import UserError
from robust_core.storage import settle, told, write_json, write_whole
from robust_core.training.checkpoint import CheckpointStore

__all__ = ["RunDirectory", "agreed_setting", "commit_of_source", "run_folder"]

SIGNS = ("config.json", "checkpoints/manifest.json")
"""A directory with one of these holds a run."""
# Everything else that a run writes, in the order in which it is removed: whatever a kill leaves is a run that is not
# finished, and whose checkpoints, as long as there are any, have the lines and weights that belong to them.
_WRITTEN = (
    *("finished.json", "report", "evaluation", "adaptive", "gallery.npz", "checkpoints"),
    *("best.pt", "metrics.jsonl", "timings.jsonl", "tensorboard"),
)


def run_folder(weights: str | Path) -> Path:
    """Return the folder that a file of weights belongs to: its own, of a run's checkpoint the run's."""
    folder = Path(weights).absolute().parent
    return folder.parent if folder.name == "checkpoints" else Path(weights).parent


def agreed_setting(
    folder: Path, name: str, stored: object, kind: type, given: object = None, flag: str = ""
) -> Any:
    """Return the setting ``name`` that the ``config.json`` in ``folder`` has ``stored``, to be used with its weights.

    ``given``: what the user says that it is (None: nothing), by the ``flag`` (default: the setting's name).

    Raises:
        UserError: if it is not of this ``kind``, or the user says otherwise.
    """
    if type(stored) is not kind:
        raise UserError(
            f"'{folder / 'config.json'}' has {name} {stored!r}, expected {kind.__name__}; restore it, or move the "
            "weights elsewhere and describe the network by flags."
        )
    if given is not None and given != stored:
        raise UserError(
            f"--{flag or name} {given} contradicts the run in '{folder}', whose config.json has {stored}; leave the "
            "flag out, or name other weights."
        )
    return stored


def commit_of_source(*folders: str) -> str:
    """Return the git commit of the checkout that this package runs from ('+' if changed), or 'unknown'.

    ``folders`` of the checkout: only their changes count.
    """
    here = Path(__file__).resolve().parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        changed = _git(
            here, "status", "--porcelain", "--untracked-files=no", "--", *(f":/{f}" for f in folders)
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


class RunDirectory:
    """One run on disk. :meth:`create` begins it, :meth:`open` takes up an existing one."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.record = record
        self.checkpoints = CheckpointStore(path / "checkpoints")

    @classmethod
    def create(
        cls,
        path: Path,
        record: dict[str, Any],
        *,
        overwrite: bool = False,
        published: Callable[[Mapping[str, Any]], Iterable[str]] = lambda _: (),
    ) -> RunDirectory:
        """Begin a run; ``record`` holds "config", "machine" and "data".

        ``published`` gives, for the settings of the run that ``overwrite`` replaces, the patterns of the files that its
        paper wrote beside the core's; they go too.

        Raises:
            UserError: if the directory holds a run already and ``overwrite`` is not set, or what it holds cannot be
                removed, or it cannot be written.
        """
        if not overwrite:
            cls.check_free(path)
        elif any((path / name).exists() for name in SIGNS):
            _clear(path, published(_settings(path)))
        record = {**record, "commit": commit_of_source()}
        write_json(path / "config.json", record)
        return cls(path, record)

    @staticmethod
    def check_free(path: Path) -> None:
        """Refuse a directory with a run, or with checkpoints that a new run would take for its own.

        Raises:
            UserError: naming what is there.
        """
        found = next((name for name in SIGNS if (path / name).exists()), None)
        if found == "config.json":
            raise UserError(
                f"'{path}' already holds a run; continue it with --resume {path}, start it anew with "
                "--overwrite, or choose another --run-dir."
            )
        if found is not None:
            raise UserError(
                f"'{path}' holds the checkpoints of a run without its config.json; restore that, start anew with "
                "--overwrite, or choose another --run-dir."
            )

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Take up an existing run.

        Raises:
            UserError: if there is no run at ``path`` or its record is damaged or cannot be read.
        """
        file = path / "config.json"
        try:
            record = json.loads(file.read_text(encoding="utf8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"'{path}' is no run directory (no config.json in it); name the one to use."
            ) from None
        except OSError as error:
            raise _unreadable(file, error) from None
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
            raise UserError(
                f"'{file}' is damaged (expected JSON with the settings under \"config\"); restore it, or start the "
                "run anew in another --run-dir."
            )
        return cls(path, record)

    def chosen_weights(self) -> Path | None:
        """Return the weights that the run chose by its ``selection``, if they are there.

        ``last``: its newest checkpoint; any other word: ``best.pt`` (papers have their own words for what is best).

        Raises:
            UserError: if the manifest of the checkpoints cannot be read.
        """
        if self.record["config"].get("selection") == "last":
            return self.checkpoints.latest_path()
        best = self.path / "best.pt"
        return best if best.is_file() else None

    @property
    def metrics_path(self) -> Path:
        """``metrics.jsonl``."""
        return self.path / "metrics.jsonl"

    @property
    def _timings_path(self) -> Path:
        return self.path / "timings.jsonl"

    @property
    def is_finished(self) -> bool:
        """Whether training and evaluation have come to their end."""
        return (self.path / "finished.json").exists()

    def finish(self, result: dict[str, Any]) -> None:
        """Mark the run as finished, with its result; comes after every other file."""
        write_json(self.path / "finished.json", result)

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        _append(self.metrics_path, line)

    def log_timing(self, line: dict[str, Any]) -> None:
        """Append one line to ``timings.jsonl``."""
        _append(self._timings_path, line)

    def settle(self) -> None:
        """Bring metrics and timings to the disk: no checkpoint behind is ahead of them, even if power fails."""
        for path in (self.metrics_path, self._timings_path):
            settle(path)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the whole lines of ``metrics.jsonl``; raises ``UserError`` as :func:`read_lines`."""
        return read_lines(self.metrics_path)

    def timings(self) -> list[dict[str, Any]]:
        """Return the whole lines of ``timings.jsonl``; raises ``UserError`` as :func:`read_lines`."""
        return read_lines(self._timings_path)

    def cut_back(self, step: int) -> None:
        """Drop the lines of metrics and timings beyond ``step``, and a line that a kill has cut short.

        Raises:
            UserError: if another line is damaged; that file is then left as it is.
        """
        _cut_back(self.metrics_path, step)
        _cut_back(self._timings_path, step)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON lines of a file; a last line without its end, which a kill leaves, is left out.

    Raises:
        UserError: if the file cannot be read or another line is no JSON object with a step.
    """
    return [line for line, _ in _lines(path, _content(path))]


def _lines(path: Path, content: bytes) -> list[tuple[dict[str, Any], bytes]]:
    """Return the whole lines of a file, each as what it means and as it stands there."""
    texts = [text + b"\n" for text in content.split(b"\n")[:-1]]
    return [(_parsed(path, number, text), text) for number, text in enumerate(texts, 1)]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise _unreadable(path, error) from None


def _parsed(path: Path, number: int, text: bytes) -> dict[str, Any]:
    try:
        line = json.loads(text.decode("utf8"))
    except (ValueError, RecursionError):
        line = None
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        raise UserError(
            f"Line {number} of '{path}' is damaged (expected a JSON object with a step); mend or remove that line, "
            "or start the run anew in another --run-dir."
        )
    return line


def _cut_back(path: Path, step: int) -> None:
    content = _content(path)
    kept = b"".join(text for line, text in _lines(path, content) if line["step"] <= step)
    if content != kept:
        write_whole(path, kept)


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"'{path}' cannot be read ({error.strerror}); make it a readable file, or start the run anew in another "
        "--run-dir."
    )


def _append(path: Path, line: dict[str, Any]) -> None:
    try:
        with path.open("a", encoding="utf8") as stream:
            stream.write(json.dumps(line) + "\n")
    except OSError as error:
        raise told(error, path) from error


def _settings(path: Path) -> Mapping[str, Any]:
    try:
        settings: Mapping[str, Any] = RunDirectory.open(path).record["config"]
    except UserError:  # damaged: replaced like any other
        return {}
    return settings


def _clear(path: Path, published: Iterable[str]) -> None:
    """Remove what a run wrote, and nothing else that lies in the directory; ``config.json`` goes last.

    A kill in between leaves a run, which is refused or overwritten like any other, not files without an owner.
    """
    for name in _WRITTEN:
        _remove(path / name)
    for pattern in published:
        for file in path.glob(pattern):
            if file.is_file():
                _remove(file)
    _remove(path / "config.json")


def _remove(place: Path) -> None:
    """Remove a file or a folder, if it is there."""
    try:
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"'{place}' of the former run cannot be removed ({error.strerror or error}); remove it yourself, or choose "
            "another --run-dir."
        ) from error
