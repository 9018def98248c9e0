"""What every paper's results are written as: a page with its tables as text and as JSON, and its figures as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from robust_core.reporting import Picture, Section, Table, png_bytes, render_page, save_figure
from robust_core.storage import write_json, write_whole

__all__ = ["p_cell", "saved_picture", "write_page"]


def p_cell(p: float) -> str:
    """Return a p-value as the tables show it."""
    return "<0.001" if p < 0.0005 else f"{p:.3f}"


def saved_picture(figure: Figure, path: Path, *, alt: str, caption: str) -> Picture:
    """Save a figure as PNG and as vector PDF beside ``path``, a name without ending; return it for the page."""
    for ending in ("png", "pdf"):
        save_figure(figure, path.with_suffix(f".{ending}"))
    return Picture(png_bytes(figure), alt=alt, caption=caption)


def write_page(folder: Path, title: str, sections: Sequence[Section]) -> None:
    """Write index.html, and the tables of all sections in their order to table.md and table.json, into ``folder``."""
    tables = [block for section in sections for block in section.blocks if isinstance(block, Table)]
    write_whole(folder / "table.md", "\n".join(table.markdown() for table in tables))
    write_whole(folder / "index.html", render_page(title, sections))
    write_json(folder / "table.json", {"tables": [table.as_json() for table in tables]})
