"""One self-contained HTML page: no network, pictures inside, readable narrow and wide, light and dark."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robust_core.errors import UserError
from robust_core.reporting.tables import Table

__all__ = ["Block", "Facts", "Notice", "Picture", "Pictures", "Section", "flatten", "render_page"]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --text: #1c1f23; --soft: #59616b; --line: #d5d9de;
  --stripe: #f5f7f9; --accent: #0072b2; --warn: #fff4d6; --warn-line: #b36b00; }
@media (prefers-color-scheme: dark) { :root { --ground: #15181c; --text: #e6e9ec; --soft: #a3acb6;
  --line: #3a4149; --stripe: #1d2126; --accent: #56b4e9; --warn: #33290f; --warn-line: #e69f00; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main, header, nav { max-width: 76rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 1.25rem; }
main { padding-bottom: 3rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .75rem; padding-bottom: .25rem;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
p { max-width: 46rem; margin: .5rem 0; overflow-wrap: anywhere; }
header p, .note, figcaption { color: var(--soft); font-size: .9rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .5rem 0 0; padding: 0;
  font-size: .9rem; }
a { color: var(--accent); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr));
  gap: 1rem; }
figure { margin: 0 0 1rem; min-width: 0; }
figure img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; }
figure.picture { max-width: 38rem; }
figcaption { margin-top: .35rem; max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .35rem; }
th, td { padding: .3rem .75rem; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
tbody th { font-weight: 500; min-width: 10rem; }
tbody tr:nth-child(even) { background: var(--stripe); }
.left { text-align: left; } .right { text-align: right; white-space: nowrap; } .center { text-align: center; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 0 2rem;
  margin: 0 0 1rem; font-size: .9rem; }
.facts div { display: grid; grid-template-columns: minmax(8rem, 2fr) 3fr; gap: .75rem; padding: .2rem 0;
  border-bottom: 1px solid var(--line); }
.facts dt { color: var(--soft); overflow-wrap: anywhere; } .facts dd { margin: 0; overflow-wrap: anywhere; }
.notice { background: var(--warn); border-left: 4px solid var(--warn-line); padding: .5rem .75rem;
  border-radius: 0 6px 6px 0; max-width: 46rem; margin: .5rem 0; overflow-wrap: anywhere; }
details { margin: .5rem 0; } summary { cursor: pointer; font-weight: 600; }
@media (max-width: 30rem) { th, td { padding: .25rem .45rem; } table { font-size: .82rem; }
  .right { white-space: normal; } tbody th { min-width: 7rem; } }
@media print { .scroll { overflow: visible; } }
"""


@dataclass(frozen=True)
class Picture:
    """A PNG (its bytes) with the text that stands for it (``alt``) and a caption."""

    png: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side where the page is wide enough."""

    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Notice:
    """A sentence that must not be overlooked, e.g. what is missing."""

    text: str


@dataclass(frozen=True)
class Facts:
    """Names and values, as of a config; ``folded`` hides them behind their title until they are opened."""

    values: Mapping[str, Any]
    title: str = ""
    folded: bool = False


Block = str | Table | Picture | Pictures | Notice | Facts


@dataclass(frozen=True)
class Section:
    """A heading with blocks below; a ``str`` block is a paragraph of plain text."""

    title: str
    blocks: tuple[Block, ...]


def render_page(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """Return a complete HTML document; every text is escaped, so nothing in it can become markup."""
    named = list(enumerate(sections, start=1))
    links = "".join(f'<li><a href="#s{n}">{html.escape(s.title)}</a></li>' for n, s in named)
    body = "".join(
        f'<section aria-labelledby="s{n}"><h2 id="s{n}">{html.escape(s.title)}</h2>\n'
        + "".join(_block(block) for block in s.blocks)
        + "</section>\n"
        for n, s in named
    )
    below = f"<p>{html.escape(subtitle)}</p>" if subtitle else ""
    contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if len(named) > 1 else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n'
        '<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n"
        # An empty icon of its own keeps browsers from asking a server for one.
        '<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{html.escape(title)}</h1>{below}</header>\n{contents}\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _block(block: Block) -> str:
    """Return one block as HTML."""
    if isinstance(block, str):
        return f"<p>{html.escape(block)}</p>\n"
    if isinstance(block, Table):
        return block.html()
    if isinstance(block, Notice):
        return f'<p class="notice" role="note">{html.escape(block.text)}</p>\n'
    if isinstance(block, Facts):
        return _facts(block)
    if isinstance(block, Pictures):
        return f'<div class="pictures">{"".join(_picture(p) for p in block.pictures)}</div>\n'
    return _picture(block)


def _picture(picture: Picture) -> str:
    if not picture.png.startswith(PNG_SIGNATURE):
        raise UserError(f"The picture '{picture.alt}' is no PNG: expected the bytes of a PNG file.")
    width, height = (int.from_bytes(picture.png[at : at + 4], "big") for at in (16, 20))
    data = base64.b64encode(picture.png).decode("ascii")
    caption = f"<figcaption>{html.escape(picture.caption)}</figcaption>" if picture.caption else ""
    return (
        f'<figure class="picture"><img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{html.escape(picture.alt, quote=True)}">{caption}</figure>\n'
    )


def _facts(facts: Facts) -> str:
    rows = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>\n"
        for name, value in flatten(facts.values)
    )
    title = html.escape(facts.title)
    listing = f'<dl class="facts">{rows}</dl>\n'
    if facts.folded:
        return f"<details><summary>{title}</summary>{listing}</details>\n"
    return (f"<h3>{title}</h3>\n" if title else "") + listing


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested values as (dotted name, text) pairs.

    >>> flatten({"data": {"name": "shapes"}, "steps": 3, "decay": [50, 75]})
    [('data.name', 'shapes'), ('steps', '3'), ('decay', '50, 75')]
    """
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            pairs += flatten(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", _text(value)))
    return pairs


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return " ".join(f"{name} {_text(entry)}" for name, entry in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(entry) for entry in value) or "–"
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.6g}"
    half_levels = round(510 * value)
    # Budgets are fractions of 255; decimal fractions that happen to be such (0.2) are meant as they are.
    if 0 < half_levels <= 128 and abs(510 * value - half_levels) < 1e-9 and len(text) > 7:
        text += f" ({half_levels / 2:g}/255)"
    return text
