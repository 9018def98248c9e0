"""The READMEs' tables of measured figures are those of the committed results."""

from __future__ import annotations

import re

import pytest
from benchmarks.reproduce.readme import READMES, ROOT, redrawn


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_measured_tables_are_drawn_from_the_results(path):
    text = path.read_text(encoding="utf8")
    assert redrawn(text) == text, "python -m benchmarks.reproduce.readme draws it anew"


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_table_of_methods_names_its_results(path):
    text = path.read_text(encoding="utf8")
    tables = re.findall(r"^\| (?:method|difference) \|.*\n\|:?-+", text, re.MULTILINE)
    assert len(re.findall(r"^<!-- measured: .* -->\n\n\| ", text, re.MULTILINE)) == len(tables)


def test_a_figure_that_was_not_measured_is_replaced():
    (path,) = (path for path in READMES if path.parent.name == "ancra")
    text = path.read_text(encoding="utf8")
    wrong = re.sub(r"^(\| TRADES \|) [0-9.]+", r"\1 99.9", text, count=1, flags=re.MULTILINE)
    assert wrong != text == redrawn(wrong)


def test_columns_and_rows_that_do_not_exist_are_refused():
    block = "<!-- measured: ancra-demo, main: natural, {column}; {row} -->\n\n| x |\n"
    assert "| method | natural | PGD-40 |" in redrawn(block.format(column="PGD-40", row="trades"))
    for column, row in (("PGD-41", "trades"), ("PGD-40", "tradez")):
        with pytest.raises(KeyError):
            redrawn(block.format(column=column, row=row))
