"""Reports from a run directory: figures, tables and one self-contained page; pieces for other pages."""

from __future__ import annotations

from robust_core.reporting.accuracy import accuracy_bars, accuracy_table, part_dots, part_table, passes_cell
from robust_core.reporting.comparison import MethodResult, comparison_figure, strength_figure
from robust_core.reporting.curves import accuracy_curves, loss_curves
from robust_core.reporting.figures import png_bytes, save_figure
from robust_core.reporting.gallery import gallery_caption, gallery_figure
from robust_core.reporting.honest import examination_figure, examination_table, sanity_as_table
from robust_core.reporting.page import Facts, Notice, Picture, Pictures, Section, render_page
from robust_core.reporting.report import write_report
from robust_core.reporting.run_files import ADAPTIVE, RunFiles, read_run
from robust_core.reporting.tables import Table, interval_cell, percent, share_cell

__all__ = [
    "ADAPTIVE",
    "Facts",
    "MethodResult",
    "Notice",
    "Picture",
    "Pictures",
    "RunFiles",
    "Section",
    "Table",
    "accuracy_bars",
    "accuracy_curves",
    "accuracy_table",
    "comparison_figure",
    "examination_figure",
    "examination_table",
    "gallery_caption",
    "gallery_figure",
    "interval_cell",
    "loss_curves",
    "part_dots",
    "part_table",
    "passes_cell",
    "percent",
    "png_bytes",
    "read_run",
    "render_page",
    "sanity_as_table",
    "save_figure",
    "share_cell",
    "strength_figure",
    "write_report",
]
