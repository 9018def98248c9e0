"""A small table of text cells that becomes Markdown, HTML, terminal text or JSON."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robust_core.errors import UserError
from robust_core.evaluation.intervals import Interval

__all__ = ["Table", "interval_cell", "percent", "share_cell"]

ALIGNMENTS = {"l": "left", "r": "right", "c": "center"}


@dataclass(frozen=True)
class Table:
    """Columns, rows of text cells, and notes that stand below.

    ``alignment`` has one letter per column: l, r or c ("" means: the first left, the others right).
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    alignment: str = ""
    title: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "rows", tuple(tuple(row) for row in self.rows))
        object.__setattr__(self, "notes", tuple(self.notes))
        object.__setattr__(self, "alignment", self.alignment or "l" + "r" * (len(self.columns) - 1))
        for row in self.rows:
            if len(row) != len(self.columns):
                raise UserError(f"Row {row} has {len(row)} cells, the table has {len(self.columns)} columns.")
        if len(self.alignment) != len(self.columns) or set(self.alignment) - set(ALIGNMENTS):
            raise UserError(
                f"Alignment '{self.alignment}' must have one of l, r, c for each of {self.columns}."
            )

    def markdown(self) -> str:
        """Return the table as GitHub Markdown, with its title above and its notes below."""
        marks = {"l": ":---", "r": "---:", "c": ":---:"}
        lines = ["| " + " | ".join(map(_markdown_cell, self.columns)) + " |"]
        lines.append("|" + "|".join(marks[a] for a in self.alignment) + "|")
        lines += ["| " + " | ".join(map(_markdown_cell, row)) + " |" for row in self.rows]
        parts = [f"**{_markdown_cell(self.title)}**"] if self.title else []
        parts.append("\n".join(lines))
        parts += [_markdown_cell(note) for note in self.notes]
        return "\n\n".join(parts) + "\n"

    def html(self) -> str:
        """Return an HTML ``<figure>``, every text in it escaped, that scrolls where the table is too wide."""
        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        head = "".join(
            f'<th scope="col" class="{ALIGNMENTS[a]}">{html.escape(name)}</th>'
            for a, name in zip(self.alignment, self.columns, strict=True)
        )
        body = "".join(f"<tr>{self._html_row(row)}</tr>\n" for row in self.rows)
        notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in self.notes)
        label = html.escape(self.title or "Table", quote=True)
        return (
            f'<figure class="table"><div class="scroll" tabindex="0" role="region" aria-label="{label}">'
            f"<table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>{notes}</figure>\n"
        )

    def _html_row(self, row: tuple[str, ...]) -> str:
        cells = []
        for number, (a, cell) in enumerate(zip(self.alignment, row, strict=True)):
            tag, scope = ("th", ' scope="row"') if number == 0 else ("td", "")
            # A figure may be parted from its interval where the page is narrow, but not the interval's ends.
            text = html.escape(cell).replace(", ", ",&nbsp;") if a == "r" else html.escape(cell)
            cells.append(f'<{tag}{scope} class="{ALIGNMENTS[a]}">{text}</{tag}>')
        return "".join(cells)

    def text(self) -> str:
        """Return the table for a terminal, columns padded with blanks, no line ending in blanks."""
        widths = [max(len(row[i]) for row in (self.columns, *self.rows)) for i in range(len(self.columns))]
        lines = [self.title] if self.title else []
        lines.append(self._text_row(self.columns, widths))
        lines.append("  ".join("-" * width for width in widths))
        lines += [self._text_row(row, widths) for row in self.rows]
        lines += [f"* {note}" for note in self.notes]
        return "\n".join(lines) + "\n"

    def _text_row(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        place = {"l": str.ljust, "r": str.rjust, "c": str.center}
        padded = (place[a](cell, w) for a, cell, w in zip(self.alignment, cells, widths, strict=True))
        return "  ".join(padded).rstrip()

    def as_json(self) -> dict[str, Any]:
        """Return the table as JSON values."""
        return {
            "title": self.title,
            "columns": list(self.columns),
            "alignment": self.alignment,
            "rows": [list(row) for row in self.rows],
            "notes": list(self.notes),
        }

    @staticmethod
    def from_json(record: dict[str, Any]) -> Table:
        """Return the table that :meth:`as_json` described."""
        return Table(
            columns=tuple(record["columns"]),
            rows=tuple(tuple(row) for row in record["rows"]),
            alignment=record["alignment"],
            title=record["title"],
            notes=tuple(record["notes"]),
        )


def percent(share: float | None) -> str:
    """Return a share as percent without the sign, or a dash for None and NaN.

    >>> percent(0.4812), percent(None)
    ('48.1', '–')
    """
    if share is None or math.isnan(share):
        return "–"
    return f"{100 * share:.1f}"


def share_cell(share: float | None, interval: Sequence[float] | None = None) -> str:
    """Return a share in percent with its interval in brackets, as all tables show it.

    >>> share_cell(0.481, [0.459, 0.503])
    '48.1 [45.9, 50.3]'
    """
    if share is None or interval is None or any(math.isnan(end) for end in interval):
        return percent(share)
    return f"{percent(share)} [{percent(interval[0])}, {percent(interval[1])}]"


def interval_cell(interval: Interval) -> str:
    """Return :func:`share_cell` of an estimate and its ends."""
    return share_cell(interval.estimate, (interval.low, interval.high))


def _markdown_cell(text: str) -> str:
    """Keep a cell in its cell: no bar, no line break, and no tag that a viewer would take for HTML."""
    for sign, safe in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("\r\n", "<br>"), ("\n", "<br>")):
        text = text.replace(sign, safe)
    return text
