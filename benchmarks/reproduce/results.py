"""Measured results as one JSON file: summary, record per image and circumstances of each row and seed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robust_core.errors import UserError
from robust_core.evaluation import Evaluation, Examination, load_checks, load_evaluation, load_examination
from robust_core.evaluation.work import TAKEN_OVER
from robust_core.reporting import ADAPTIVE
from robust_core.storage import write_json
from robust_core.training import RunDirectory

__all__ = ["Entry", "ResultFile", "left_out_note", "packed", "unpacked"]


def packed(bits: NDArray[np.bool_]) -> str:
    """Return booleans as hexadecimal text."""
    return np.packbits(bits).tobytes().hex()


def unpacked(text: str, count: int) -> NDArray[np.bool_]:
    """Return the ``count`` booleans of :func:`packed`."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))[:count].astype(bool)


@dataclass(frozen=True)
class Entry:
    """One finished run, examined by attacks that know its defence if ``examined`` is not empty (their summary).

    ``record`` maps columns to packed booleans, one per test image; ``attacked/COLUMN`` says which images a column
    is about, where it is not all, and ``group/K`` which are of group K, where the data have groups. ``weighted`` are
    accuracies (natural, robust) weighted by the training proportions of the groups.
    """

    row: str
    seed: int
    settings: dict[str, Any]
    images: int
    record: dict[str, str]
    summary: dict[str, Any]
    machine: dict[str, Any]
    software: dict[str, str]
    data: dict[str, Any]
    commit: str
    train_seconds: float
    examined: dict[str, Any] = field(default_factory=dict)
    weighted: dict[str, float | None] = field(default_factory=dict)

    @classmethod
    def of_run(cls, row: str, seed: int, settings: dict[str, Any], run: RunDirectory, protocol: str) -> Entry:
        """Return the entry of a finished run directory that was evaluated under ``protocol``."""
        evaluation = load_evaluation(run.path / "evaluation", protocol)
        columns = {"natural": evaluation.natural, "robust": evaluation.worst_case()}
        for name, right in evaluation.last.items():
            columns[name] = right
            attacked = evaluation.attacked[name]
            if not attacked.all():
                columns[f"attacked/{name}"] = attacked
        if evaluation.groups is not None:
            names = evaluation.group_names or tuple(map(str, range(int(evaluation.groups.max()) + 1)))
            columns |= {f"group/{place}": evaluation.groups == place for place in range(len(names))}
        examined: dict[str, Any] = {}
        found = load_examination(run.path / ADAPTIVE, evaluation.weights)
        if found is not None:
            columns |= _examined_columns(found, evaluation)
            examined = _examined_summary(found, evaluation, run.path / ADAPTIVE / "sanity.json")
        return cls(
            row=row,
            seed=seed,
            settings=settings,
            images=len(evaluation.labels),
            record={name: packed(bits) for name, bits in columns.items()},
            summary=evaluation.summary(),
            machine=run.record["machine"],
            # the command line names places of one machine; what decides a result is in the settings
            software={k: v for k, v in run.record["software"].items() if k != "command"},
            data=run.record["data"],
            commit=run.record["commit"],
            train_seconds=sum(float(line["seconds"]) for line in run.timings()),
            examined=examined,
            weighted=_weighted(run.path / "finished.json"),
        )

    def bits(self, column: str) -> NDArray[np.bool_] | None:
        """Return the record of a column over the images that it attacked, or None where it was not run."""
        if column not in self.record:
            return None
        bits = unpacked(self.record[column], self.images)
        attacked = self.record.get(f"attacked/{column}")
        return bits if attacked is None else bits[unpacked(attacked, self.images)]

    def accuracy(self, column: str) -> float | None:
        """Return the share of images that were right in a column."""
        bits = self.bits(column)
        return None if bits is None else float(bits.mean())


def _weighted(finished: Path) -> dict[str, float | None]:
    """Return the train-weighted accuracies that a run about groups has found, or none."""
    if not finished.exists():
        return {}
    found: dict[str, float | None] = json.loads(finished.read_text(encoding="utf8")).get(
        "train_weighted_accuracy", {}
    )
    return found


def _examined_columns(found: Examination, whole: Evaluation) -> dict[str, NDArray[np.bool_]]:
    """Return the worst case of all attacks on the examined images, which are the first, and AutoAttack's own part."""
    cascade = found.cascade
    count, total = len(cascade.labels), len(whole.labels)
    seen = np.arange(total) < count
    worst = found.worst_case() & whole.worst_case()[:count]
    columns = {"adaptive": np.pad(worst, (0, total - count))}
    if "autoattack" in cascade.robust:
        # images wrong at zero perturbation are not attacked in a cascade
        alone = cascade.robust["autoattack"] & cascade.natural
        columns["autoattack"] = np.pad(alone, (0, total - count))
    if count < total:
        columns |= {f"attacked/{name}": seen for name in tuple(columns)}
    return columns


def _examined_cost(found: Examination, whole: Evaluation) -> dict[str, float]:
    """Return passes per examined image and seconds of all attacks that the column "adaptive" is about.

    A member that one part took over from another is counted where it ran; of a run's own evaluation, the share of
    the examined images is.
    """
    count = len(found.cascade.labels)
    parts = [part for part in (found.cascade, found.alone, found.long, found.float32) if part is not None]
    fresh = {n for part in (*parts, whole) for n, run in part.runs.items() if TAKEN_OVER not in run.flags}
    counted = [
        (run, 1.0)
        for part in parts
        for name, run in part.runs.items()
        if TAKEN_OVER not in run.flags or name not in fresh
    ]
    counted += [(run, min(1.0, count / max(run.images, 1))) for run in whole.runs.values()]

    def added(what: str) -> float:
        return float(sum(share * getattr(run, what) for run, share in counted))

    passes = {f"{what}_per_image": added(what) / count for what in ("forward", "backward", "judging")}
    return {**passes, "seconds": added("seconds")}


def _examined_summary(found: Examination, whole: Evaluation, sanity: Path) -> dict[str, Any]:
    """Return what the examination says besides the record: members, cost, gain, precision, the sanity table."""
    checks = load_checks(sanity) if sanity.exists() else []
    members = found.cascade.protocol.members
    return {
        "sources": {
            member.settings["source"]: member.settings["source_weights"]
            for member in members
            if member.kind == "transfer"
        },
        "claims": found.claims(),
        "cost": _examined_cost(found, whole),
        "cascade": found.cascade.summary(),
        "alone": None if found.alone is None else found.alone.summary()["members"],
        "gain": found.gain(),
        "precision_gap": found.precision_gap(),
        "sanity": [asdict(check) for check in checks],
    }


class ResultFile:
    """The entries of one paper at one scale, on disk after each run."""

    def __init__(self, path: Path, paper: str, scale: str) -> None:
        self.path = path
        self.paper = paper
        self.scale = scale
        self.entries: list[Entry] = []
        if path.exists():
            try:
                self.entries = [
                    Entry(**entry) for entry in json.loads(path.read_text(encoding="utf8"))["entries"]
                ]
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"'{path}' holds no results of this version; move it away, or name another --results."
                ) from None

    def find(self, row: str, seed: int) -> Entry | None:
        """Return the entry of a row and seed."""
        return next((entry for entry in self.entries if (entry.row, entry.seed) == (row, seed)), None)

    def has(self, row: str, seed: int, settings: dict[str, Any]) -> bool:
        """Return whether a row is finished with these settings."""
        entry = self.find(row, seed)
        return entry is not None and entry.settings == json.loads(json.dumps(settings))

    def add(self, entry: Entry) -> None:
        """Take an entry up, in place of an older one of the same row and seed, and write the file."""
        self.entries = [old for old in self.entries if (old.row, old.seed) != (entry.row, entry.seed)] + [
            entry
        ]
        self.entries.sort(key=lambda item: (item.row, item.seed))
        content = {
            "paper": self.paper,
            "scale": self.scale,
            "entries": [asdict(item) for item in self.entries],
        }
        write_json(self.path, content)

    def only(self, keep: Callable[[Entry], bool]) -> ResultFile:
        """Return these results without the entries that ``keep`` refuses; the file stays as it is."""
        chosen = copy.copy(self)
        chosen.entries = [entry for entry in self.entries if keep(entry)]
        return chosen

    def of_row(self, row: str) -> list[Entry]:
        """Return the entries of a row, by seed."""
        return [entry for entry in self.entries if entry.row == row]

    def paired(self, first: str, second: str) -> tuple[list[tuple[Entry, Entry]], list[int]]:
        """Return the results of two rows by seed, and the seeds left out because their test images are not the same."""
        others = {entry.seed: entry for entry in self.of_row(second)}
        found = [(entry, others[entry.seed]) for entry in self.of_row(first) if entry.seed in others]
        pairs = [(a, b) for a, b in found if (a.data["test"], a.images) == (b.data["test"], b.images)]
        kept = {entry.seed for entry, _ in pairs}
        return pairs, [entry.seed for entry, _ in found if entry.seed not in kept]


def left_out_note(seeds: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """Return a note on the seeds that :meth:`ResultFile.paired` left out, by what they would have been called."""
    told = "; ".join(f"{title}, seed {seed}" for title, left in seeds.items() for seed in left)
    return (f"Left out: {told}: other test images.",) if told else ()
