"""Two methods on the same images: evaluations paired by seed and image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robust_core.errors import UserError
from robust_core.evaluation.intervals import PairedDifference, paired_difference
from robust_core.evaluation.record import Evaluation

__all__ = ["compare"]


def compare(
    first: Sequence[Evaluation], second: Sequence[Evaluation], which: str = "robust", *, seed: int = 0
) -> PairedDifference:
    """Return how much better the first method is, with an interval over seeds (one seed: over images).

    One evaluation per training seed, in the same order; ``which`` names the record (see
    ``Evaluation.correct``). Raises ``UserError`` where data, images or the record's attack differ.
    """
    if len(first) != len(second) or not first:
        raise UserError(
            f"{len(first)} and {len(second)} evaluations cannot be paired: expected one per seed of both methods."
        )
    for mine, theirs in zip(first, second, strict=True):
        for what, a, b in (
            ("data", mine.data, theirs.data),
            ("images", mine.indices.tolist(), theirs.indices.tolist()),
            ("labels", mine.labels.tolist(), theirs.labels.tolist()),
            ("attacks", _attacks(mine, which), _attacks(theirs, which)),
        ):
            if a != b:
                raise UserError(
                    f"The evaluations are of different {what}: evaluate both methods on the same images "
                    "under the same protocol."
                )
    return paired_difference(
        np.stack([evaluation.correct(which) for evaluation in first]),
        np.stack([evaluation.correct(which) for evaluation in second]),
        seed=seed,
    )


def _attacks(evaluation: Evaluation, which: str) -> object:
    """What attacked in a record: nothing, one member with its settings, or all that ran, and on which images."""
    if which == "natural":
        return None
    ran = [member.as_json() for member in evaluation.protocol.members if member.name in evaluation.robust]
    name = which.partition("/")[2]
    return [member for member in ran if not name or member["name"] == name]
