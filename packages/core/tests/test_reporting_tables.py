"""One table, four forms; pages that escape everything."""

from __future__ import annotations

import json

import pytest

from robust_core.errors import UserError
from robust_core.reporting import Facts, Notice, Picture, Section, Table, percent, render_page, share_cell

TABLE = Table(
    ("method", "natural (%)"), (("AT", "95.5"), ("PART | <b>", "96.3")), title="Demo", notes=("One seed.",)
)


def test_markdown():
    rows = "| AT | 95.5 |\n| PART \\| &lt;b> | 96.3 |\n"
    assert TABLE.markdown() == f"**Demo**\n\n| method | natural (%) |\n|:---|---:|\n{rows}\nOne seed.\n"
    two_lines = Table(("a",), (("x\ny",),)).markdown()
    assert "x<br>y" in two_lines


def test_text_lines_up_and_has_no_trailing_blanks():
    lines = TABLE.text().splitlines()
    assert lines == [
        "Demo",
        "method      natural (%)",
        "----------  -----------",
        "AT                 95.5",
        "PART | <b>         96.3",
        "* One seed.",
    ]
    centred = Table(("a", "wide"), (("x", "y"),), alignment="rc").text()
    assert all(line == line.rstrip() for line in centred.splitlines())


def test_html_escapes_and_marks_heads():
    text = TABLE.html()
    assert "PART | &lt;b&gt;" in text
    assert '<th scope="col" class="right">natural (%)</th>' in text
    assert '<th scope="row" class="left">AT</th>' in text


def test_json_and_back():
    assert Table.from_json(json.loads(json.dumps(TABLE.as_json()))) == TABLE


@pytest.mark.parametrize(
    ("rows", "alignment", "message"),
    [
        ((("a",),), "", "has 1 cells, the table has 2"),
        ((), "lx", "Alignment 'lx'"),
        ((), "l", "Alignment 'l'"),
    ],
)
def test_refuses_rows_and_alignments_that_do_not_fit(rows, alignment, message):
    with pytest.raises(UserError, match=message):
        Table(("a", "b"), rows, alignment=alignment)


def test_cells_of_shares():
    assert share_cell(0.5, None) == "50.0"
    assert share_cell(None, None) == share_cell(None, [0, 1]) == percent(float("nan")) == "–"
    assert share_cell(0.5, [float("nan")] * 2) == "50.0"


def test_page_escapes_every_block():
    evil = "<img src=x onerror=\"alert('1')\">&"
    blocks = (
        evil,
        Notice(evil),
        Table((evil,), ((evil,),), title=evil, notes=(evil,)),
        Facts({evil: {evil: [evil, None, True, 1e-9]}}, title=evil, folded=True),
        Facts({evil: evil}, title=evil),
    )
    page = render_page(evil, [Section(evil, blocks), Section("second", ())], subtitle=evil)
    assert "<img" not in page
    assert 'onerror="' not in page
    assert page.count("&lt;img") > 10


def test_picture_must_be_a_png():
    with pytest.raises(UserError, match="no PNG"):
        render_page("t", [Section("s", (Picture(b"GIF89a", "a picture"),))])


def test_facts_show_budgets_as_fractions():
    page = render_page(
        "t", [Section("s", (Facts({"eps": 2.5 / 255, "share": 0.2, "none": None, "list": []}),))]
    )
    for text in ("0.00980392 (2.5/255)", "<dd>0.2</dd>", "<dd>–</dd>"):
        assert text in page


def test_facts_show_lists_of_settings():
    page = render_page("t", [Section("s", (Facts({"phases": [{"name": "main", "steps": 3}]}),))])
    assert "<dd>name main steps 3</dd>" in page
