"""The record of an evaluation: per image what was right, from which every summary is recomputed."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robust_core.errors import UserError
from robust_core.evaluation.protocols import Protocol
from robust_core.evaluation.summary import summarize
from robust_core.storage import write_json, write_whole

__all__ = ["Evaluation", "MemberRun", "load_evaluation"]

FORMAT = 1
REMEDY = "delete finished.json of the run and continue it with --resume: it is then evaluated again."
# What the readers of JSON, of archives and of what is in them raise for damaged files.
DAMAGES = (
    *(ValueError, KeyError, TypeError, AttributeError, RecursionError),
    *(OSError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error),
)
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class MemberRun:
    """How one member went: passes are counted in images (one image through the network once is one pass).

    ``forward`` and ``backward`` are the attack's, ``judging`` the forward passes of the unmodified model that
    decided about success. ``remedy`` says how to make a member run that did not; ``flags`` are its warnings.
    """

    images: int = 0
    forward: int = 0
    backward: int = 0
    judging: int = 0
    seconds: float = 0.0
    remedy: str = ""
    flags: tuple[str, ...] = ()

    @property
    def ran(self) -> bool:
        """Whether the member attacked at all."""
        return not self.remedy


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, image by image; arrays have one entry per image, in the data set's order.

    ``natural``: right at zero perturbation. ``last[member]``: right at the member's last iterate (published).
    ``robust[member]``: right at zero perturbation and at every iterate of the member. Both are
    meaningful where ``attacked[member]``; members that did not run have no arrays. ``indices``: positions in
    the full split. ``cascade``: members attacked only what the members before them left standing. ``weights``:
    SHA-256 of the network's tensors. ``seconds`` and the passes in ``runs`` are cost, everything else is a function
    of the model, the data and the seed.
    """

    protocol: Protocol
    natural: Bools
    last: dict[str, Bools]
    robust: dict[str, Bools]
    attacked: dict[str, Bools]
    labels: Ints
    groups: Ints | None
    indices: Ints
    runs: dict[str, MemberRun]
    class_names: tuple[str, ...]
    group_names: tuple[str, ...] | None = None
    data: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    precision: str = "float32"
    device: str = "cpu"
    batch_size: int = 0
    seconds: float = 0.0
    cascade: bool = False
    weights: str = ""

    def summary(self) -> dict[str, Any]:
        """Return accuracies, intervals, worst class and group, and cost (see ``summarize``)."""
        return summarize(self)

    def worst_case(self) -> Bools:
        """Return, per image, whether it withstood every member that attacked it ``(N,)``."""
        robust: Bools = self.natural.copy()
        for name, withstood in self.robust.items():
            robust &= withstood | ~self.attacked[name]
        return robust

    def correct(self, which: str = "robust") -> Bools:
        """Return a record ``(N,)``: "natural", "robust" (worst case), "last/MEMBER" or "robust/MEMBER".

        ``UserError`` for a member that did not run on all images: such a record is of other images.
        """
        if which == "natural":
            return self.natural
        if which == "robust" and self.robust:
            return self.worst_case()
        kind, _, member = which.partition("/")
        records = {"last": self.last, "robust": self.robust}.get(kind, {})
        if member in records and self.attacked[member].all():
            return records[member]
        known = [f"{k}/{m}" for m in self.robust if self.attacked[m].all() for k in ("last", "robust")]
        raise UserError(
            f"This evaluation has no record '{which}' of all its images; it has: "
            f"{', '.join(['natural', *(['robust'] if self.robust else []), *known])}."
        )

    def save(self, directory: str | Path, name: str) -> Path:
        """Write ``name.npz`` (per image), then ``name.json`` (settings, cost, summary); return the latter."""
        folder = Path(directory)
        arrays: dict[str, NDArray[Any]] = {
            "natural": self.natural,
            "labels": self.labels,
            "indices": self.indices,
        }
        if self.groups is not None:
            arrays["groups"] = self.groups
        for member in self.robust:
            arrays[f"last/{member}"] = self.last[member]
            arrays[f"robust/{member}"] = self.robust[member]
            arrays[f"attacked/{member}"] = self.attacked[member]
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        write_whole(folder / f"{name}.npz", buffer.getvalue())
        record = {
            "format": FORMAT,
            "arrays": hashlib.sha256(buffer.getvalue()).hexdigest(),
            "protocol": self.protocol.as_json(),
            "data": self.data,
            "class_names": list(self.class_names),
            "group_names": None if self.group_names is None else list(self.group_names),
            "runs": {member: asdict(run) for member, run in self.runs.items()},
            "seed": self.seed,
            "precision": self.precision,
            "device": self.device,
            "batch_size": self.batch_size,
            "seconds": self.seconds,
            "cascade": self.cascade,
            "weights": self.weights,
            "summary": self.summary(),
        }
        # The manifest comes last and names the arrays by their hash: neither fits the other half of another save.
        write_json(folder / f"{name}.json", record)
        return folder / f"{name}.json"


def load_evaluation(directory: str | Path, name: str) -> Evaluation:
    """Return the evaluation that ``Evaluation.save`` wrote; its summary is recomputed from the record.

    Raises:
        UserError: if one of its two files is missing, damaged or does not fit the other.
    """
    manifest = Path(directory) / f"{name}.json"
    archive = Path(directory) / f"{name}.npz"
    for path in (manifest, archive):
        if not path.is_file():
            raise UserError(f"No evaluation record {path}; {REMEDY}")
    try:
        record = json.loads(manifest.read_text(encoding="utf8"))
        content = archive.read_bytes()
        if record.get("arrays") != hashlib.sha256(content).hexdigest():
            raise ValueError(f"its arrays are not those of {archive}")
        # from memory: numpy leaves a damaged file open
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        return _from_record(record, arrays)
    except DAMAGES as error:
        reason = str(error).removesuffix(".")
        raise UserError(f"Evaluation record {manifest} cannot be read ({reason}); {REMEDY}") from error


def _check_arrays(arrays: dict[str, NDArray[Any]]) -> None:
    """Raise ``ValueError`` unless every array that figures come from has one entry per image, of its type."""
    for key, array in arrays.items():
        kind = np.integer if key in ("labels", "groups", "indices") else np.bool_
        whole = key == "indices" or array.shape == (len(arrays["labels"]),)
        if not whole or not np.issubdtype(array.dtype, kind):
            raise ValueError(f"its array '{key}' is {array.dtype} {array.shape}")


def _from_record(record: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Evaluation:
    """Put the parts together; a missing key is an error of the caller's file."""
    by_kind: dict[str, dict[str, Bools]] = {"last": {}, "robust": {}, "attacked": {}}
    for key, array in arrays.items():
        kind, _, member = key.partition("/")
        if member:
            by_kind[kind][member] = array
    runs = {
        member: MemberRun(**{**run, "flags": tuple(run["flags"])}) for member, run in record["runs"].items()
    }
    _check_arrays(arrays)
    # An archive lists its members in its own order; the protocol's order decides.
    ran = [member for member, run in runs.items() if run.ran]
    return Evaluation(
        protocol=Protocol.from_json(record["protocol"]),
        natural=arrays["natural"],
        last={member: by_kind["last"][member] for member in ran},
        robust={member: by_kind["robust"][member] for member in ran},
        attacked={member: by_kind["attacked"][member] for member in ran},
        labels=arrays["labels"],
        groups=arrays.get("groups"),
        indices=arrays["indices"],
        runs=runs,
        class_names=tuple(record["class_names"]),
        group_names=None if record["group_names"] is None else tuple(record["group_names"]),
        data=record["data"],
        seed=record["seed"],
        precision=record["precision"],
        device=record["device"],
        batch_size=record["batch_size"],
        seconds=record["seconds"],
        cascade=record.get("cascade", False),
        weights=record.get("weights", ""),
    )
