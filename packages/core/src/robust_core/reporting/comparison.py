"""Several methods side by side: natural against robust accuracy, every seed shown, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robust_core.errors import UserError
from robust_core.evaluation import Interval
from robust_core.reporting.figures import (
    COLORS,
    MARKERS,
    SMALL,
    TEXT,
    error_ends,
    new_figure,
    percent_axis,
    tidy,
)

__all__ = ["MethodResult", "comparison_figure", "strength_figure"]


@dataclass(frozen=True)
class MethodResult:
    """One row of a comparison: shares in [0, 1] with intervals, and each seed's values if there are several.

    ``published_natural`` and ``published_robust`` are drawn as open diamonds where they are known.
    """

    name: str
    natural: Interval
    robust: Interval
    natural_seeds: tuple[float, ...] = ()
    robust_seeds: tuple[float, ...] = ()
    published_natural: float | None = None
    published_robust: float | None = None


def comparison_figure(
    methods: Sequence[MethodResult], *, robust_label: str = "robust accuracy (%)"
) -> Figure:
    """Return two panels of dots with error bars, natural and robust accuracy, one line per method.

    The panels have their own ranges, because differences between methods are small beside both accuracies:
    read the axes. Small rings are single seeds.
    """
    if not methods:
        raise UserError("No methods to compare: expected at least one.")
    figure = new_figure(6.2, 1.35 + 0.42 * len(methods))
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, methods, "natural", COLORS[0], "o")
    _panel(right, methods, "robust", COLORS[1], "s")
    left.set_xlabel("natural accuracy (%)", fontsize=TEXT)
    right.set_xlabel(robust_label, fontsize=TEXT)
    left.set_yticks(range(len(methods)), [method.name for method in methods])
    left.set_ylim(len(methods) - 0.5, -0.5)
    handles = [
        left.plot([], [], marker="o", color="black", linestyle="none", label="mean and 95% interval")[0],
    ]
    if any(len(m.natural_seeds) > 1 or len(m.robust_seeds) > 1 for m in methods):
        handles += left.plot(
            [],
            [],
            marker="o",
            markersize=4,
            markerfacecolor="none",
            color="black",
            linestyle="none",
            label="one seed",
        )
    if any(m.published_natural is not None or m.published_robust is not None for m in methods):
        handles += left.plot(
            [], [], marker="D", markerfacecolor="none", color="black", linestyle="none", label="published"
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False)
    return figure


def strength_figure(methods: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """Return one line per method with its accuracy under each attack, from natural images to the strongest one.

    ``methods`` maps names to intervals (shares in [0, 1]) by attack, in the order in which they are drawn; attacks
    that a method lacks are left out. Raises ``UserError`` without methods.
    """
    if not methods:
        raise UserError("No methods to compare: expected at least one.")
    attacks = list(dict.fromkeys(attack for found in methods.values() for attack in found))
    figure = new_figure(6.2, 1.35 + 0.5 * len(methods))
    axes = figure.subplots()
    for number, attack in enumerate(attacks):
        offset = 0.16 * (number - (len(attacks) - 1) / 2)
        drawn = [(place, found[attack]) for place, found in enumerate(methods.values()) if attack in found]
        for first, (place, interval) in enumerate(drawn):
            axes.errorbar(
                100 * interval.estimate,
                place + offset,
                xerr=error_ends(interval.estimate, interval.ends() and interval[1:]),
                marker=MARKERS[number % len(MARKERS)],
                markersize=6,
                color=COLORS[number % len(COLORS)],
                capsize=2.5,
                linewidth=1.3,
                linestyle="none",
                label=attack if first == 0 else None,
            )
    for place in range(len(methods) - 1):
        axes.axhline(place + 0.5, color="#eceff2", linewidth=0.7, zorder=0)
    axes.set_yticks(range(len(methods)), list(methods))
    axes.set_ylim(len(methods) - 0.5, -0.5)
    tidy(axes, grid="x")
    axes.tick_params(axis="y", length=0)
    percent_axis(axes, "x", "accuracy (%), 95% intervals", low=-2, high=102)
    figure.legend(loc="outside lower center", ncols=len(attacks), fontsize=SMALL, frameon=False)
    return figure


def _panel(axes: Axes, methods: Sequence[MethodResult], kind: str, color: str, marker: str) -> None:
    """Draw one accuracy of all methods."""
    ends = []
    for place, method in enumerate(methods):
        interval: Interval = getattr(method, kind)
        seeds: tuple[float, ...] = getattr(method, f"{kind}_seeds")
        published: float | None = getattr(method, f"published_{kind}")
        share = interval.estimate
        error = error_ends(share, interval.ends() and interval[1:])
        axes.errorbar(
            100 * share,
            place,
            xerr=error,
            marker=marker,
            markersize=6.5,
            color=color,
            capsize=3,
            linewidth=1.5,
            linestyle="none",
        )
        if len(seeds) > 1:
            axes.plot(
                [100 * s for s in seeds],
                [place + 0.24] * len(seeds),
                marker="o",
                markersize=4,
                markerfacecolor="none",
                color=color,
                linestyle="none",
            )
        if published is not None:
            axes.plot(100 * published, place - 0.24, marker="D", markerfacecolor="none", color="black")
        ends += [100 * share - error[0][0], 100 * share + error[1][0], *(100 * s for s in seeds)]
        ends += [] if published is None else [100 * published]
    low, high = min(ends), max(ends)
    room = max(1.0, 0.08 * (high - low))
    axes.set_xlim(low - room, high + room)
    tidy(axes, grid="both")
    axes.tick_params(axis="y", length=0)
