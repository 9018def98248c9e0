"""Learning curves from the lines of ``metrics.jsonl``: accuracies per epoch, losses per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from robust_core.reporting.figures import (
    COLORS,
    GREY,
    LINES,
    MARKERS,
    SMALL,
    TEXT,
    WIDTH,
    new_figure,
    percent_axis,
    tidy,
)

__all__ = ["accuracy_curves", "loss_curves", "metric_label"]

Line = Mapping[str, Any]
BINS = 120
NAMES = {"natural": "natural", "robust": "robust", "pgd": "PGD", "mma": "MMA", "fgsm": "FGSM", "apgd": "APGD"}


def metric_label(key: str) -> str:
    """Return how a figure names a metric.

    >>> metric_label("pgd20_accuracy"), metric_label("natural_accuracy"), metric_label("natural_loss")
    ('PGD-20', 'natural', 'natural loss')
    """
    name = key.removesuffix("_accuracy")
    letters = name.rstrip("0123456789")
    if letters in NAMES:
        digits = name[len(letters) :]
        return NAMES[letters] + (f"-{digits}" if digits else "")
    return name.replace("_", " ")


def accuracy_curves(epochs: Sequence[Line], steps: Sequence[Line] = ()) -> Figure | None:
    """Return accuracies (keys ``*_accuracy`` of epoch lines) over training steps, or None without any."""
    keys = _keys(epochs, lambda key: key.endswith("_accuracy"))
    if not keys:
        return None
    figure = new_figure(WIDTH, 3.6)
    axes = figure.subplots()
    for number, key in enumerate(keys):
        x, y = _series(epochs, key)
        style = number % len(COLORS)
        axes.plot(
            x,
            100 * y,
            color=COLORS[style],
            linestyle=LINES[style],
            marker=MARKERS[style],
            markersize=5 if len(x) < 40 else 0,
            linewidth=1.8,
            label=f"{metric_label(key)} ({100 * y[-1]:.1f} at the end)",
            clip_on=False,
        )
    tidy(axes)
    percent_axis(axes, "y", "accuracy (%)")
    _step_axis(axes, [*steps, *epochs])
    figure.legend(loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False)
    return figure


def loss_curves(steps: Sequence[Line]) -> Figure | None:
    """Return the losses (keys ``loss`` and ``*_loss`` of step lines) over steps, or None without any.

    Thin lines are single steps, thick ones means over bins of equal numbers of steps.
    """
    keys = _keys(steps, lambda key: key == "loss" or key.endswith("_loss"))[: len(COLORS)]
    if not keys:
        return None
    figure = new_figure(WIDTH, 3.6)
    axes = figure.subplots()
    for number, key in enumerate(keys):
        x, y = _series(steps, key)
        color = COLORS[number]
        axes.plot(x, y, color=color, linewidth=0.6, alpha=0.25)
        mean_x, mean_y = _binned(x, y)
        label = "loss of the step" if key == "loss" else metric_label(key)
        axes.plot(mean_x, mean_y, color=color, linestyle=LINES[number], linewidth=1.8, label=label)
    tidy(axes)
    axes.set_ylabel("loss (nats)", fontsize=TEXT)
    _robust_limits(axes, steps, keys)
    _step_axis(axes, steps)
    figure.legend(loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False)
    return figure


def _keys(lines: Sequence[Line], wanted: Any) -> list[str]:
    """Metric names with at least one number: natural accuracy and plain loss first, the others as logged."""
    found = dict.fromkeys(
        key for line in lines for key in line if wanted(key) and _number(line[key]) is not None
    )
    return sorted(found, key=lambda key: key not in ("loss", "natural_accuracy"))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        return None
    return float(value)


def _series(lines: Sequence[Line], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values of one metric; lines without a step count from 0."""
    pairs = []
    for number, line in enumerate(lines):
        value = _number(line.get(key))
        if value is not None:
            step = _number(line.get("step"))
            pairs.append((float(number) if step is None else step, value))
    data = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    return data[:, 0], data[:, 1]


def _binned(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means over at most BINS runs of consecutive steps."""
    few = len(x) <= 60
    parts = np.array_split(np.arange(len(x)), len(x) if few else min(BINS, len(x) // 4))
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def _robust_limits(axes: Axes, steps: Sequence[Line], keys: Sequence[str]) -> None:
    """Let single spikes leave the picture: what matters is where the bulk lies."""
    values = np.concatenate([_series(steps, key)[1] for key in keys])
    high = float(np.quantile(values, 0.995))
    low = float(values.min())
    room = 0.08 * max(high - low, 1e-6)
    axes.set_ylim(min(low, 0.0) if low < 0.3 * high else low - room, high + room)


def _step_axis(axes: Axes, lines: Sequence[Line]) -> None:
    """Label the steps, and mark where a phase of the training begins."""
    axes.set_xlabel("training step", fontsize=TEXT)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    last = max((_number(line.get("step")) or 0.0 for line in lines), default=0.0)
    if last > 0:
        axes.set_xlim(0, 1.02 * last)
    # Not every step is logged: a phase begins after the last line of the one before.
    starts: dict[str, float] = {}
    before = 0.0
    for line in sorted(lines, key=lambda line: _number(line.get("step")) or 0.0):
        phase = line.get("phase")
        if isinstance(phase, str) and phase:
            starts.setdefault(phase, before)
        before = _number(line.get("step")) or before
    if len(starts) < 2:
        return
    for number, (phase, step) in enumerate(starts.items()):
        if number:
            axes.axvline(step, color=GREY, linewidth=0.9, linestyle=(0, (2, 3)))
        axes.annotate(
            phase,
            (step, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=SMALL - 1,
            color=GREY,
            va="bottom",
        )
