"""From results to what is read: a table of measured beside published, paired differences, a figure, a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.reproduce.costs import cost_table
from benchmarks.reproduce.page import p_cell, saved_picture, write_page
from benchmarks.reproduce.results import Entry, ResultFile, left_out_note
from benchmarks.reproduce.rows import Paper, Row
from robust_core.evaluation import holm, paired_difference, t_interval, wilson
from robust_core.evaluation.intervals import MIN_IMAGES, Interval
from robust_core.reporting import (
    MethodResult,
    Notice,
    Picture,
    Pictures,
    Section,
    Table,
    comparison_figure,
    interval_cell,
    strength_figure,
)

__all__ = ["difference_table", "honesty_table", "main_table", "run_notes", "write_tables"]

_MACHINE = ("precision", "processor", "threads", "torch")


def interval_of(entries: Sequence[Entry], column: str) -> Interval | None:
    """Return mean and 95% interval of a column: over seeds if there are several, else over images (Wilson)."""
    values = [value for entry in entries if (value := entry.accuracy(column)) is not None]
    if not values:
        return None
    if len(values) > 1:
        return t_interval(values)
    entry = next(entry for entry in entries if column in entry.record)
    bits = entry.bits(column)
    return None if bits is None else wilson(int(bits.sum()), len(bits))


def _cell(interval: Interval | None) -> str:
    return "not run" if interval is None else interval_cell(interval)


def _published(row: Row, column: str) -> str:
    return f"{row.published[column]:.2f}" if column in row.published else "–"


def main_table(paper: Paper, results: ResultFile, rows: Sequence[Row]) -> Table:
    """Return measured accuracies (percent) beside published ones, one row per method."""
    shown = [row for row in rows if results.of_row(row.name) or row.published]
    members = [(name, head) for name, head in paper.columns if any(name in e.record for e in results.entries)]
    examined = any(entry.examined for entry in results.entries)
    heads = ["method", "natural", *[head for _, head in members]]
    heads += [*([] if examined else ["worst case"]), "seeds", "training"]
    known = {name for row in shown for name in row.published}
    published = [(n, head) for n, head in (("natural", "natural"), *paper.columns) if n in known]
    heads += [f"published {head}" for _, head in published]
    lines = []
    for row in shown:
        entries = results.of_row(row.name)
        cells = [row.title, _cell(interval_of(entries, "natural"))]
        cells += [_cell(interval_of(entries, name)) for name, _ in members]
        cells += [] if examined else [_cell(interval_of(entries, "robust"))]
        cells.append(" ".join(str(entry.seed) for entry in entries) or "–")
        cells.append(f"{np.mean([e.train_seconds for e in entries]):.0f} s" if entries else "–")
        cells += [_published(row, name) for name, _ in published]
        lines.append(tuple(cells))
    return Table(
        tuple(heads), tuple(lines), title=f"{paper.title}, {results.scale}", notes=run_notes(paper, results)
    )


def run_notes(paper: Paper, results: ResultFile) -> tuple[str, ...]:
    """Return what stands below a main table: how to read it, what was trained and attacked, and where."""
    first = results.entries[0]
    several = any(len(results.of_row(entry.row)) > 1 for entry in results.entries)
    settings = first.settings
    where = {name: _distinct(entry.machine[name] for entry in results.entries) for name in _MACHINE}
    commits = _distinct(entry.commit[:10] for entry in results.entries)
    return (
        paper.reading[results.scale],
        f"Percent of {first.images} test images of {settings['data']}; {settings['model']}, "
        f"{first.data['train']['images']} training images; eps {settings['test_epsilon'] * 255:g}/255. "
        + (
            "Mean over seeds with 95% t interval (one seed: Wilson interval over images)."
            if several
            else "95% Wilson interval over images; one seed."
        ),
        "Attack columns: right at the last iterate, as published. Worst case: right at zero perturbation and at every "
        "iterate of every attack that was run. Intervals do not cover the weakness of an attack.",
        *([] if not any(entry.examined for entry in results.entries) else [_examined_note(paper, results)]),
        f"Attack in training {where['precision']}, evaluation float32; {where['processor']}, "
        f"threads {where['threads']}, torch {where['torch']}, commit {commits}.",
        *(
            []
            if any(row.published for row in paper.rows)
            else ["No published figures are known for these rows."]
        ),
        *([paper.note] if paper.note else []),
    )


def _distinct(values: Iterable[object]) -> str:
    """Return the different ones in order: "a", "a and b", "a, b and c"."""
    *before, last = sorted({str(value) for value in values})
    return f"{', '.join(before)} and {last}" if before else last


def _untransferred(paper: Paper, entries: Sequence[Entry]) -> str:
    """Say from which networks some runs were not transferred, because nobody had trained them."""
    if paper.sources is None:
        return ""
    lacking: Counter[str] = Counter()
    for entry in entries:
        rows = [row.name for row in paper.rows if not row.cited]
        every = {(row, seed): Path() for row in rows for seed in (entry.seed, entry.seed + 1)}
        known = paper.sources((entry.row, entry.seed), every)
        lacking.update(name for name in known if name not in entry.examined.get("sources", {}))
    told = ", ".join(f"{name} ({count} of {len(entries)} runs)" for name, count in lacking.items())
    return f" Not transferred from, for want of such a network: {told}." if told else ""


def _examined_note(paper: Paper, results: ResultFile) -> str:
    """Say what stands in the column "adaptive"."""
    entries = [entry for entry in results.entries if entry.examined]
    images = sorted({entry.examined["cascade"]["images"] for entry in entries})
    complete = all(entry.examined["claims"] for entry in entries)
    autoattack = all("autoattack" in entry.examined["cascade"]["members"] for entry in entries)
    note = (
        "Adaptive: the worst case over every iterate of all these "
        f"attacks and of those that know the network, on the first {' or '.join(map(str, images))} images."
        f"{_untransferred(paper, entries)}"
    )
    if not autoattack:
        return f"{note} AutoAttack was not part of it, so that no worst case is claimed."
    note = f"AutoAttack: right at zero perturbation and after it. {note}"
    if not complete:
        note += " Some attacks could not run (reports of the runs), so that no worst case is claimed."
    return note


def honesty_table(paper: Paper, results: ResultFile, rows: Sequence[Row]) -> Table | None:
    """Return, per run that was examined, what attacks that know the network add, and the lines it fails."""
    lines = []
    for row in rows:
        for entry in results.of_row(row.name):
            if not entry.examined:
                continue
            members = entry.examined["cascade"]["members"]
            most = max(members, key=lambda name: members[name].get("breaks") or 0)
            alone = entry.examined["alone"] or {}
            only = [
                f"{name} {m['only_this_breaks']}" for name, m in alone.items() if m.get("only_this_breaks")
            ]
            sanity = entry.examined["sanity"]
            failed = ", ".join(check["name"] for check in sanity if check["failed"]) or "none"
            checked = sum(check["failed"] is not None for check in sanity)
            gain, gap = (entry.examined[name] for name in ("gain", "precision_gap"))
            lines.append(
                (
                    row.title,
                    str(entry.seed),
                    f"{most} ({members[most]['breaks']})",
                    ", ".join(only) or "–",
                    "–" if gain is None else f"{100 * gain:+.1f}",
                    "–" if gap is None else f"{100 * gap:.1f}",
                    f"{failed} (of {checked})" if checked > 1 else "not made",
                )
            )
    if not lines:
        return None
    return Table(
        (
            "method",
            "seed",
            "breaks most in the cascade",
            "only this breaks",
            "longer gains",
            "float64",
            "fails sanity",
        ),
        tuple(lines),
        alignment="lrllrrl",
        title=f"{paper.title}: attacks that know the network",
        notes=(
            "In the cascade an attack meets only what those before it left. Only this breaks: images of the first ones "
            "that every member attacked alone. Longer: points by which more steps lower the worst case. "
            "float64: points between the precisions. Sanity: lines of the table in each run's report.",
        ),
    )


def difference_table(paper: Paper, results: ResultFile, rows: Sequence[Row]) -> Table | None:
    """Return each method minus the reference, paired by seed and image; None with fewer than two methods."""
    reference = results.of_row(paper.reference)
    compared = [name for name, _ in paper.columns if name in (paper.compared or (paper.columns[0][0],))]
    compared = ["natural", *(name for name in compared if all(name in e.record for e in reference))]
    lines: list[list[str]] = []
    p_values: list[float] = []
    over: set[str] = set()
    claimable = True
    left_out: dict[str, list[int]] = {}
    for row in rows:
        if row.name in (paper.reference, "natural"):
            continue
        pairs, left_out[row.title] = results.paired(row.name, paper.reference)
        if not pairs:
            continue
        cells = []
        for name in compared:
            ours = [entry.bits(name) for entry, _ in pairs]
            theirs = [entry.bits(name) for _, entry in pairs]
            if any(bits is None for bits in ours):
                cells.append("not run")
                continue
            found = paired_difference(np.array(ours), np.array(theirs))
            low, high = found.interval.low, found.interval.high
            cells.append(f"{100 * found.interval.estimate:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]")
            p_values.append(found.p_value)
            over.add(found.over)
            claimable &= found.claimable
        lines.append([row.title, *cells, str(len(pairs))])
    if not lines and not any(left_out.values()):
        return None
    adjusted = iter(p_cell(p) if claimable else "–" for p in holm(p_values))
    filled = []
    for title, *cells, seeds in lines:
        pairs_of_cells = [(cell, "–" if cell == "not run" else next(adjusted)) for cell in cells]
        filled.append((title, *(part for pair in pairs_of_cells for part in pair), seeds))
    title = next(row.title for row in paper.rows if row.name == paper.reference)
    headings = {"natural": "natural", **dict(paper.columns)}
    heads = ("method", *(part for name in compared for part in (headings[name], "p (Holm)")), "seeds")
    kinds = {
        "seeds": "seeds (t) where there are several",
        "images": "images (bootstrap; McNemar's test) where there is one seed, and for that seed only",
    }
    notes = []
    if lines:
        notes.append(
            f"Points against {title}, paired by seed and image; 95% intervals over "
            f"{' and over '.join(kinds[kind] for kind in sorted(over, reverse=True))}; p adjusted together."
        )
    if not claimable:
        notes.append(
            f"Fewer than {MIN_IMAGES} images: nothing is claimed of these differences, and no p is given."
        )
    return Table(
        heads, tuple(filled), title=f"Difference to {title}", notes=(*notes, *left_out_note(left_out))
    )


def _figure_rows(results: ResultFile, rows: Sequence[Row], column: str) -> list[MethodResult]:
    found = []
    for row in rows:
        entries = results.of_row(row.name)
        natural, robust = interval_of(entries, "natural"), interval_of(entries, column)
        if natural is None or robust is None:
            continue
        single = [
            [value for e in entries if (value := e.accuracy(name)) is not None]
            for name in ("natural", column)
        ]
        several = len(entries) > 1
        found.append(
            MethodResult(
                row.title,
                natural,
                robust,
                natural_seeds=tuple(single[0]) if several else (),
                robust_seeds=tuple(single[1]) if several else (),
                published_natural=row.published["natural"] / 100 if "natural" in row.published else None,
                published_robust=row.published[column] / 100 if column in row.published else None,
            )
        )
    return found


def _strength(paper: Paper, results: ResultFile, rows: Sequence[Row], folder: Path) -> Picture:
    """Draw what stronger and stronger attacks leave of each method."""
    columns = (("natural", "natural"), *paper.columns)
    methods = {}
    for row in rows:
        found = {head: interval_of(results.of_row(row.name), name) for name, head in columns}
        if known := {head: interval for head, interval in found.items() if interval is not None}:
            methods[row.title] = known
    return saved_picture(
        strength_figure(methods),
        folder / "attacks",
        alt="Accuracy of each method on natural images and under each attack, with 95% intervals",
        caption="What the published attack says, and what attacks that know the network leave.",
    )


def write_tables(paper: Paper, results: ResultFile, rows: Sequence[Row], folder: Path) -> Table:
    """Write the page, its tables and its figures into ``folder``; returns the main table."""
    table = main_table(paper, results, rows)
    differences = difference_table(paper, results, rows)
    member, heading = paper.columns[0]
    picture = saved_picture(
        comparison_figure(_figure_rows(results, rows, member), robust_label=f"{heading} accuracy (%)"),
        folder / "comparison",
        alt=f"Natural and {heading} accuracy of each method with 95% intervals",
        caption=f"Natural and {heading} accuracy. The panels have their own ranges.",
    )
    pictures = [picture]
    if any(entry.examined for entry in results.entries):
        pictures.insert(0, _strength(paper, results, rows, folder))
    sections = [Section("Results", (Notice(paper.reading[results.scale]), table, Pictures(tuple(pictures))))]
    honesty = honesty_table(paper, results, rows)
    if honesty is not None:
        sections.append(Section("Attacks that know the network", (honesty,)))
    if differences is not None:
        sections.append(Section("Paired differences", (differences,)))
    sections.append(Section("Cost", (cost_table(paper, results, rows),)))
    write_page(folder, table.title, sections)
    return table
