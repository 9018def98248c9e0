"""One measured comparison: times of both sides, whether their results agree, the target, the table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.speed.clock import Ratio, ratio_of

__all__ = ["Row", "markdown"]

EQUAL_SHARE = 0.999
"""Below this share of equal elements a float32 comparison is void: the sides do not compute the same."""


@dataclass(frozen=True)
class Row:
    """Ours against another way: ``times`` are the seconds of each round, paired.

    ``equal`` is the share of elements of the result that are equal on both sides, found before the clock
    started; ``needs_equal`` is False in lower precision, where some signs of the gradient differ.
    """

    part: str
    ours: str
    other: str
    our_times: Sequence[float]
    other_times: Sequence[float]
    target: float | None
    equal: float
    needs_equal: bool
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> Ratio:
        """How many times faster ours is."""
        return ratio_of(self.other_times, self.our_times)

    @property
    def verdict(self) -> str:
        """``met``, ``not met``, ``void`` or, without a target, ``-``."""
        if self.needs_equal and self.equal < EQUAL_SHARE:
            return "void: results differ"
        if self.target is None:
            return "-"
        return "met" if self.ratio.median >= self.target else "not met"

    def to_dict(self) -> dict[str, Any]:
        """Return everything, raw times included, for the JSON record."""
        return {**asdict(self), "ratio": asdict(self.ratio), "verdict": self.verdict}


def markdown(rows: Sequence[Row]) -> str:
    """Return the table of all rows."""
    head = "| | ours | against | seconds, ours | seconds, other | ratio (range) | target | | equal | |"
    lines = [head, "|---|---|---|---:|---:|---:|---:|---|---:|---|"]
    for row in rows:
        ratio, target = row.ratio, "-" if row.target is None else f"{row.target:g}x"
        cells = [
            row.part,
            row.ours,
            row.other,
            f"{statistics.median(row.our_times):.3g}",
            f"{statistics.median(row.other_times):.3g}",
            f"{ratio.median:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})",
            target,
            row.verdict,
            f"{100 * row.equal:.2f}%",
            row.note,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
