"""The picture: gap, excess and stationarity against the horizon, for each oracle, with the line T^-1/2."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.convex.study import KL_NAME, ORACLES, STEPS
from benchmarks.convex.weights import RULES
from robust_core.reporting.figures import COLORS, GREY, SMALL, TEN_COLORS, TEXT, WIDTH, new_figure, tidy

__all__ = ["convergence_figure"]

MEASURES = {"gap": "duality gap", "excess": "Phi - Phi*", "stationarity": "smallest subgradient"}
MARKERS = "osDv^<>PX*h"
LEAD = {"corrected": COLORS[0], "official": COLORS[1]}


def _style(name: str) -> dict[str, Any]:
    """Return the look of a rule: the two that the claim is about stand out."""
    names = [rule.name for rule in RULES] + [KL_NAME]
    place = names.index(name)
    if name in LEAD:
        return {
            "color": LEAD[name],
            "marker": MARKERS[place],
            "linewidth": 2.2,
            "markersize": 5.5,
            "zorder": 4,
        }
    dashes = "--" if name == KL_NAME else "-"
    # the bluish and the orange ones are left to the two that stand out
    color = (*(c for c in TEN_COLORS if c not in ("#3f90da", "#ffa90e", "#e76300")), *COLORS[2:4], COLORS[6])[
        place - 2
    ]
    return {
        "color": color,
        "marker": MARKERS[place],
        "linewidth": 1.0,
        "markersize": 3.5,
        "linestyle": dashes,
    }


def _draw(axes: Axes, rows: list[dict[str, Any]], measure: str) -> None:
    for row in rows:
        if measure not in row["measures"]:
            continue
        found = row["measures"][measure]["horizons"]
        horizons = [int(key) for key in found]
        style = _style(row["rule"])
        axes.plot(horizons, [item["median"] for item in found.values()], label=row["rule"], **style)
        if row["rule"] in LEAD:
            low, high = ([item[end] for item in found.values()] for end in ("low", "high"))
            axes.fill_between(horizons, low, high, color=style["color"], alpha=0.18, linewidth=0)
    first = next(row for row in rows if row["rule"] == "corrected")["measures"][measure]["horizons"]
    horizons = [int(key) for key in first]
    top = next(iter(first.values()))["median"]
    line = [top * (horizons[0] / horizon) ** 0.5 for horizon in horizons]
    axes.plot(horizons, line, color=GREY, linestyle=":", linewidth=1.6, label="T^-1/2", zorder=3)
    axes.set_xscale("log")
    axes.set_yscale("log")
    tidy(axes, grid="both")


def convergence_figure(result: dict[str, Any], within: str = "bounded simplex") -> Figure:
    """Return medians over seeds (5-95% shaded for corrected and official) with steps c/sqrt(T)."""
    figure = new_figure(1.6 * WIDTH, 2.0 * WIDTH)
    grid = figure.subplots(len(MEASURES), len(ORACLES), sharex=True, sharey="row", squeeze=False)
    for column, oracle in enumerate(ORACLES):
        rows = [
            row
            for row in result["rows"]
            if (row["oracle"], row["steps"], row["weights"]) == (oracle, STEPS[0], within)
        ]
        for axes, (measure, title) in zip(grid[:, column], MEASURES.items(), strict=True):
            _draw(axes, rows, measure)
            if column == 0:
                axes.set_ylabel(title, fontsize=TEXT)
        grid[0, column].set_title(oracle, fontsize=TEXT)
        grid[-1, column].set_xlabel("horizon T", fontsize=TEXT)
    figure.suptitle(
        f"Q: {within}; steps {STEPS[0]}; median of {result['settings']['seeds']} seeds", fontsize=TEXT
    )
    handles, labels = grid[-1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False)
    return figure
