"""What all figures share: colours that colour-blind readers can tell apart, sizes, PNG and PDF bytes.

Figures are ``matplotlib.figure.Figure`` objects drawn by Agg: no pyplot, no global state, no display.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robust_core.storage import write_whole

__all__ = [
    "COLORS",
    "GREY",
    "LINES",
    "MARKERS",
    "SMALL",
    "TEN_COLORS",
    "TEXT",
    "WIDTH",
    "error_ends",
    "new_figure",
    "pdf_bytes",
    "percent_axis",
    "png_bytes",
    "save_figure",
    "tidy",
]

# Okabe and Ito 2008: blue, vermillion, green, purple, orange, sky blue, black.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
# Petroff 2021, for ten kinds that markers tell apart as well.
TEN_COLORS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadb"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", "-", "--", "-.")

TEXT = 11
SMALL = 10.0
DPI = 180
# Inches: narrow enough that texts stay legible where a phone shows the whole width.
WIDTH = 5.2
GREY = "#59616b"


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches whose layout makes room for all its texts."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def tidy(axes: Axes, *, grid: str = "y") -> None:
    """Give axes the look of all figures: no box, pale grid behind the data, legible ticks."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis=grid, color="#d5d9de", linewidth=0.7)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL)


def percent_axis(axes: Axes, which: str, label: str, low: float = 0.0, high: float = 100.0) -> None:
    """Make an axis (``x`` or ``y``) one of accuracies in percent."""
    if which == "x":
        axes.set_xlim(low, high)
        axes.set_xlabel(label, fontsize=TEXT)
    else:
        axes.set_ylim(low, high)
        axes.set_ylabel(label, fontsize=TEXT)


def error_ends(share: float, interval: Any) -> list[list[float]]:
    """Return matplotlib's error lengths ``[[below], [above]]`` in percent; 0 without an interval."""
    if interval is None:
        return [[0.0], [0.0]]
    # Rounding may put an end on the wrong side of the estimate by a last bit.
    return [[max(0.0, 100 * (share - interval[0]))], [max(0.0, 100 * (interval[1] - share))]]


def png_bytes(figure: Figure) -> bytes:
    """Return a figure as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def pdf_bytes(figure: Figure) -> bytes:
    """Return a figure as a vector PDF whose text stays text; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with rc_context({"pdf.fonttype": 42}):
        figure.savefig(
            buffer, format="pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None}
        )
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, or as vector PDF if the path ends so, through a temporary file; return its path."""
    path = Path(path)
    write_whole(path, pdf_bytes(figure) if path.suffix == ".pdf" else png_bytes(figure))
    return path
