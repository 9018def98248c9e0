"""GDRO-AT's convergence claim on a convex problem: every rule against certified minima, over horizons and seeds.

Writes the numbers (JSON) and the picture, and prints the table. On one free core it takes some minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import scipy

from benchmarks.convex.figure import convergence_figure
from benchmarks.convex.study import Settings, study
from robust_core.cli import Parser, guarded
from robust_core.reporting.figures import save_figure
from robust_core.reporting.tables import Table
from robust_core.storage import write_json
from robust_core.training.rundir import commit_of_source

__all__ = ["main", "summary_table"]

ROOT = Path(__file__).resolve().parents[2]
QUICK = Settings(seeds=2, horizons=(100, 1000))


def _slope(measure: dict[str, Any] | None) -> str:
    if measure is None:
        return "-"
    slope = measure["slope"]
    return f"{slope['median']:+.2f} ({slope['low']:+.2f}, {slope['high']:+.2f})"


def _last(measure: dict[str, Any] | None) -> str:
    return "-" if measure is None else f"{list(measure['horizons'].values())[-1]['median']:.1e}"


def summary_table(result: dict[str, Any]) -> Table:
    """Return the measures at the largest horizon and their slopes over the last decade, median (5%, 95%)."""
    settings = result["settings"]
    rows = []
    for row in result["rows"]:
        gap, excess, stationary, last = (
            row["measures"].get(name) for name in ("gap", "excess", "stationarity", "last_excess")
        )
        rows.append(
            (
                *(row["oracle"], row["weights"], row["steps"], row["rule"]),
                *(_last(gap), _slope(gap), _last(excess), _slope(excess), _last(last)),
                *(_last(stationary), _slope(stationary)),
            )
        )
    return Table(
        (
            *("oracle", "Q", "steps", "rule", "gap", "slope", "Phi - Phi*", "slope", "last iterate"),
            *("stationarity", "slope"),
        ),
        tuple(rows),
        alignment="llll" + 7 * "r",
        title=f"T = {max(settings['horizons'])}, averaged iterate, median of {settings['seeds']} seeds",
        notes=(
            "Slopes: log against log T over the last decade, median (5%, 95%) over seeds. The gap is that of the game "
            "a rule plays (its own c); Phi and stationarity are the same for all. T^-1/2 is slope -0.50. In the "
            f"stationarity corners of Q count as active within {settings['active_tolerance']} of the largest loss.",
        ),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m benchmarks.convex``; returns the exit code."""
    parser = Parser(prog="python -m benchmarks.convex", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="2 seeds, horizons 100 and 1000 (writes what --out names)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="the numbers (benchmarks/results/convex.json; none with --quick)",
    )
    parser.add_argument(
        "--figure", type=Path, default=None, help="the picture (docs/convex.png; none with --quick)"
    )
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)

    def body() -> None:
        out = given.out or (None if given.quick else ROOT / "benchmarks/results/convex.json")
        picture = given.figure or (None if given.quick else ROOT / "docs/convex.png")
        result = study(QUICK if given.quick else Settings())
        software = {"numpy": np.__version__, "scipy": scipy.__version__, "matplotlib": mpl.__version__}
        record = {"commit": commit_of_source(), "software": software, **result}
        print(summary_table(record).text())
        if out is not None:
            write_json(out, record)
            print(f"numbers: {out}")
        if picture is not None:
            print(f"picture: {save_figure(convergence_figure(record), picture)}")

    return guarded(body, "the same command begins anew")


if __name__ == "__main__":
    sys.exit(main())
