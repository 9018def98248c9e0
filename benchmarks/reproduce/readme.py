"""The READMEs' tables of measured figures, drawn from the committed results: ``python -m benchmarks.reproduce.readme``.

Such a table stands below a comment that names the results file, which of its tables, and the columns and rows shown
(no rows: all that were run), as in ``<!-- measured: part-demo, main: natural, PGD-20; at, part -->``. A column of
differences brings its p-value along.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reproduce.group_tables import group_difference_table, group_table
from benchmarks.reproduce.papers import PAPERS
from benchmarks.reproduce.results import ResultFile
from benchmarks.reproduce.tables import difference_table, main_table
from robust_core.reporting import Table

__all__ = ["measured_table", "redrawn"]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
READMES = (ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md")))
_BLOCK = re.compile(
    r"^<!-- measured: (?P<file>[\w-]+), (?P<table>main|differences): (?P<columns>[^;>]*?)(?:; (?P<rows>[^>]*?))? -->\n"
    r"\n(?P<drawn>(?:\|.*\n)+)",
    re.MULTILINE,
)


def measured_table(path: Path, table: str, columns: Sequence[str], rows: Sequence[str]) -> str:
    """Return the columns and rows of a results file's ``main`` or ``differences`` table as Markdown.

    Raises:
        KeyError: for a column or row that the table does not have.
    """
    content = json.loads(path.read_text(encoding="utf8"))
    paper = PAPERS[content["paper"]]
    results = ResultFile(path, content["paper"], content["scale"])
    known = {row.name: row for row in paper.at(content["scale"])}
    chosen = [known[name] for name in rows] or list(known.values())
    tables = (group_table, group_difference_table) if paper.pairs else (main_table, difference_table)
    found = tables[table == "differences"](paper, results, chosen)
    if found is None:
        raise KeyError(f"{path.name} has no {table}")
    places = {name: place for place, name in enumerate(found.columns)}
    shown = [0]
    for name in columns:
        shown += [places[name]] if table == "main" else [places[name], places[name] + 1]
    lines = tuple(tuple(line[place] for place in shown) for line in found.rows)
    return Table(tuple(found.columns[place] for place in shown), lines).markdown()


def redrawn(text: str) -> str:
    """Return a README's text with its tables of measured figures as the committed results have them."""

    def draw(block: re.Match[str]) -> str:
        columns = block["columns"].split(", ")
        rows = block["rows"].split(", ") if block["rows"] else ()
        table = measured_table(RESULTS / f"{block['file']}.json", block["table"], columns, rows)
        return block[0].removesuffix(block["drawn"]) + table.strip("\n") + "\n"

    return _BLOCK.sub(draw, text)


def main() -> int:
    """Draw all tables anew; names the files that changed."""
    for path in READMES:
        text = path.read_text(encoding="utf8")
        if (new := redrawn(text)) != text:
            path.write_text(new, encoding="utf8")
            print(f"drawn anew: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
