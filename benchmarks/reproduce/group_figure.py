"""The comparison of methods by their groups: average and worst group, on natural and on attacked images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robust_core.errors import UserError
from robust_core.evaluation import Interval
from robust_core.reporting.figures import (
    COLORS,
    MARKERS,
    SMALL,
    error_ends,
    new_figure,
    percent_axis,
    tidy,
)

__all__ = ["Dot", "group_figure"]


class Dot(NamedTuple):
    """One accuracy in [0, 1] with its interval, and each seed's value if there are several."""

    interval: Interval
    seeds: tuple[float, ...] = ()


def group_figure(methods: Mapping[str, Mapping[str, tuple[Dot, Dot]]]) -> Figure:
    """Return one panel per kind of images, a line per method, with its average and its worst group.

    ``methods`` maps names to (average, worst group) by the heading of the panel; the panels have one range, because
    what the figure is about is the gap inside of each and the fall between them. Raises ``UserError`` without methods.
    """
    if not methods:
        raise UserError("No methods to compare: expected at least one.")
    heads = list(dict.fromkeys(head for found in methods.values() for head in found))
    figure = new_figure(7.4, 1.35 + 0.5 * len(methods))
    panels: Sequence[Axes] = figure.subplots(1, len(heads), sharey=True, squeeze=False)[0]
    for axes, head in zip(panels, heads, strict=True):
        for place, found in enumerate(methods.values()):
            for number, dot in enumerate(found.get(head, ())):
                _draw(axes, place + 0.26 * (number - 0.5), dot, number)
        for place in range(len(methods) - 1):
            axes.axhline(place + 0.5, color="#eceff2", linewidth=0.7, zorder=0)
        tidy(axes, grid="x")
        axes.tick_params(axis="y", length=0)
        percent_axis(axes, "x", f"{head} accuracy (%)", low=-3, high=103)
    panels[0].set_yticks(range(len(methods)), list(methods))
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    handles = [
        panels[0].plot([], [], marker=MARKERS[n], color=COLORS[n], linestyle="none", label=label)[0]
        for n, label in enumerate(("average, 95% interval", "worst group, 95% interval"))
    ]
    if any(dot.seeds for found in methods.values() for pair in found.values() for dot in pair):
        rings = panels[0].plot([], [], marker="o", color="black", linestyle="none", label="one seed")
        rings[0].set(markersize=4, markerfacecolor="none")
        handles += rings
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), fontsize=SMALL, frameon=False
    )
    return figure


def _draw(axes: Axes, height: float, dot: Dot, number: int) -> None:
    interval = dot.interval
    axes.errorbar(
        100 * interval.estimate,
        height,
        xerr=error_ends(interval.estimate, interval.ends() and interval[1:]),
        marker=MARKERS[number],
        markersize=6,
        color=COLORS[number],
        capsize=2.5,
        linewidth=1.3,
        linestyle="none",
    )
    axes.plot(
        [100 * value for value in dot.seeds],
        [height] * len(dot.seeds),
        marker="o",
        markersize=4,
        markerfacecolor="none",
        markeredgewidth=0.7,
        color=COLORS[number],
        linestyle="none",
    )
