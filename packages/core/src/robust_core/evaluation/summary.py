"""From the record per image to the figures of a table: accuracies with intervals, worst parts, cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robust_core.evaluation.intervals import MIN_IMAGES, bootstrap_minimum, enough_images, wilson

if TYPE_CHECKING:
    from robust_core.evaluation.record import Evaluation

__all__ = ["INTERVAL_NOTE", "summarize"]

INTERVAL_NOTE = (
    "Intervals are 95% over images; they do not cover the weakness of an attack: "
    "a stronger attack can only lower a robust accuracy."
)

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def summarize(evaluation: Evaluation) -> dict[str, Any]:
    """Return every figure of an evaluation as JSON values; accuracies are shares in [0, 1].

    Keys: ``images``, ``natural_accuracy``, ``robust_accuracy`` (worst case over every iterate of all members
    that ran; None without one) and their ``_interval`` (95% Wilson), ``complete`` (all members ran, on all images
    or, in a ``cascade``, on all that stood before them), ``members`` (per member: ``last_accuracy``,
    ``robust_accuracy``, intervals, ``breaks``, ``only_this_breaks``, passes per image, seconds, settings),
    ``classes`` and ``groups`` (per class and group), ``worst_class`` and ``worst_group`` (name, accuracy and
    bootstrap interval, natural and robust), ``precision``, ``note``.
    """
    robust = evaluation.worst_case() if evaluation.robust else None
    count = len(evaluation.labels)
    members = {member.name: _member(evaluation, member.name) for member in evaluation.protocol.members}
    classes = _parts(evaluation.class_names, evaluation.labels, evaluation.natural, robust)
    groups = None
    if evaluation.groups is not None:
        names = evaluation.group_names or _numbered(evaluation.groups)
        groups = _parts(names, evaluation.groups, evaluation.natural, robust)
    return {
        "protocol": evaluation.protocol.name,
        "images": count,
        **_accuracy("natural", evaluation.natural),
        **_accuracy("robust", robust),
        "complete": _complete(evaluation),
        "cascade": evaluation.cascade,
        "weights": evaluation.weights,
        "members": members,
        "classes": classes,
        "worst_class": _worst(classes, evaluation.labels, evaluation.natural, robust, evaluation.seed),
        "groups": groups,
        "worst_group": None
        if groups is None or evaluation.groups is None
        else _worst(groups, evaluation.groups, evaluation.natural, robust, evaluation.seed),
        "seconds": evaluation.seconds,
        "precision": evaluation.precision,
        "device": evaluation.device,
        "seed": evaluation.seed,
        "note": INTERVAL_NOTE,
    }


def _complete(evaluation: Evaluation) -> bool:
    """Whether every member attacked all that it could break."""
    standing = np.ones_like(evaluation.natural) if not evaluation.cascade else evaluation.natural.copy()
    for member in evaluation.protocol.members:
        if not evaluation.runs[member.name].ran:
            return False
        attacked = evaluation.attacked[member.name]
        # in a cascade a member that is meant for the first so many images has done its part with these
        meant = (member.images or len(attacked)) if evaluation.cascade else len(attacked)
        if not attacked[:meant][standing[:meant]].all():
            return False
        if evaluation.cascade:
            standing &= evaluation.robust[member.name] | ~attacked
    return True


def _numbered(values: Ints) -> tuple[str, ...]:
    return tuple(str(i) for i in range(int(values.max()) + 1))


def _accuracy(kind: str, correct: Bools | None) -> dict[str, Any]:
    """Accuracy and Wilson interval of a record, or None for both."""
    if correct is None or correct.size == 0:
        return {f"{kind}_accuracy": None, f"{kind}_interval": None}
    interval = wilson(int(correct.sum()), correct.size)
    return {f"{kind}_accuracy": interval.estimate, f"{kind}_interval": interval.ends()}


def _member(evaluation: Evaluation, name: str) -> dict[str, Any]:
    """One member's own figures, over the images that it attacked."""
    member = next(m for m in evaluation.protocol.members if m.name == name)
    run = evaluation.runs[name]
    result: dict[str, Any] = {
        "status": "run" if run.ran else "not run",
        "remedy": run.remedy,
        "flags": list(run.flags),
        "kind": member.kind,
        "settings": member.settings,
        "images": run.images,
    }
    if not run.ran:
        return {**result, **_accuracy("last", None), **_accuracy("robust", None)}
    attacked = evaluation.attacked[name]
    others = evaluation.natural.copy()
    for other, withstood in evaluation.robust.items():
        if other != name:
            others &= withstood | ~evaluation.attacked[other]
    broken = attacked & ~evaluation.robust[name]
    return {
        **result,
        **_accuracy("last", evaluation.last[name][attacked]),
        **_accuracy("robust", evaluation.robust[name][attacked]),
        "only_this_breaks": int((broken & others).sum()),
        "breaks": int((broken & evaluation.natural).sum()),
        "forward_per_image": run.forward / max(run.images, 1),
        "backward_per_image": run.backward / max(run.images, 1),
        "judging_per_image": run.judging / max(run.images, 1),
        "seconds": run.seconds,
    }


def _parts(names: Sequence[str], members: Ints, natural: Bools, robust: Bools | None) -> list[dict[str, Any]]:
    """Accuracies per class or group, in the order of their numbers."""
    rows = []
    for number, name in enumerate(names):
        inside = members == number
        images = int(inside.sum())
        rows.append(
            {
                "name": name,
                "images": images,
                "enough_images": enough_images(images),
                **_accuracy("natural", natural[inside]),
                **_accuracy("robust", None if robust is None else robust[inside]),
            }
        )
    return rows


def _worst(
    rows: list[dict[str, Any]], members: Ints, natural: Bools, robust: Bools | None, seed: int
) -> dict[str, Any]:
    """The lowest accuracy over classes or groups with images, and whether anything may be claimed of it."""
    present = [row for row in rows if row["images"] > 0]
    result: dict[str, Any] = {
        "min_images": MIN_IMAGES,
        "enough_images": enough_images([row["images"] for row in present]),
    }
    for kind, correct in (("natural", natural), ("robust", robust)):
        result[f"{kind}_name"] = None
        result[f"{kind}_accuracy"] = None
        result[f"{kind}_interval"] = None
        if correct is None:
            continue
        interval = bootstrap_minimum(correct, members, seed=seed)
        result[f"{kind}_name"] = min(present, key=lambda row: row[f"{kind}_accuracy"])["name"]
        result[f"{kind}_accuracy"] = interval.estimate
        result[f"{kind}_interval"] = interval.ends()
    return result
