"""What a paper declares: tables of rows (method, network, data), settings, published figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robust_core.config import RunConfig
from robust_core.plan import Plan

__all__ = ["Paper", "Row"]

_UNSET = object()


@dataclass(frozen=True)
class Row:
    """One method of a table.

    ``settings`` are what it changes against the scale's defaults; ``scales`` are those it is run at; ``published``
    maps columns (``natural``, member names) to percentages, absent where none was published; ``seeds`` limit those
    of the scale (empty: all). A ``cited`` row is shown for its published figures and never run; an ``extra`` one is run
    when it is named, or with ``--all-methods``.
    """

    name: str
    title: str
    settings: Mapping[str, Any]
    scales: tuple[str, ...] = ("smoke", "demo", "reduced", "paper")
    published: Mapping[str, float] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    cited: bool = False
    extra: bool = False


@dataclass(frozen=True)
class Paper:
    """A paper's tables as one list of rows, and how its settings become runs.

    ``resolve`` turns settings into a configuration and notes; ``protocol`` names the final evaluation;
    ``columns`` are (member, heading) of the robust accuracies shown; ``reference`` is the row that the others
    are compared with, seed by seed and image by image, in the columns ``compared``; ``reading`` is, per scale, the
    sentence that says what the table can and cannot show. ``network_settings`` decide a run's network besides those
    that all papers share. ``examine(run, sources, scale)`` attacks a finished run with knowledge of its defence, once
    all rows are trained; ``sources(row, runs)`` are those it may transfer from, by name, of all (row, seed). A paper
    with ``pairs`` (row, other row) is about groups: its tables show them, and compare just these pairs.
    ``absent(given)`` says why a table cannot be run with these settings, as where its data are not there ("": it can).
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    config: type[RunConfig]
    resolve: Callable[[Mapping[str, Any]], tuple[Any, list[str]]]
    plan: Plan[Any]
    protocol: str
    columns: tuple[tuple[str, str], ...]
    reference: str
    seeds: Mapping[str, tuple[int, ...]]
    reading: Mapping[str, str]
    note: str = ""
    compared: tuple[str, ...] = ()
    network_settings: tuple[str, ...] = ()
    examine: Callable[[Path, Mapping[str, Path], str], None] | None = None
    sources: Callable[[tuple[str, int], Mapping[tuple[str, int], Path]], Mapping[str, Path]] | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    absent: Callable[[Mapping[str, Any]], str] | None = None

    def at(self, scale: str) -> list[Row]:
        """Return the rows of a scale."""
        return [row for row in self.rows if scale in row.scales]

    def row_told_by(self, setting: str) -> Row | None:
        """Return a row that differs from others of its scale in a setting; None if there is none at any scale."""
        for scale in sorted({scale for row in self.rows for scale in row.scales}):
            rows = [row for row in self.at(scale) if not row.cited]
            values = [row.settings.get(setting, _UNSET) for row in rows]
            if any(value != values[0] for value in values):
                return next(row for row in rows if setting in row.settings)
        return None
