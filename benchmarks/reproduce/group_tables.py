"""Tables of papers about groups: average and worst group, natural and attacked, and differences of pairs of methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.reproduce.costs import cost_table
from benchmarks.reproduce.group_figure import Dot, group_figure
from benchmarks.reproduce.page import p_cell, saved_picture, write_page
from benchmarks.reproduce.results import Entry, ResultFile, left_out_note, unpacked
from benchmarks.reproduce.rows import Paper, Row
from benchmarks.reproduce.tables import run_notes
from robust_core.evaluation import (
    bootstrap_minimum,
    enough_images,
    holm,
    paired_difference,
    paired_worst,
    t_interval,
    t_test,
    wilson,
    worst_group,
)
from robust_core.evaluation.intervals import MIN_IMAGES, Interval
from robust_core.reporting import (
    Notice,
    Picture,
    Pictures,
    Section,
    Table,
    interval_cell,
)

__all__ = ["group_difference_table", "group_table", "groups_of", "write_group_tables"]


class Measure(NamedTuple):
    """An accuracy: of which record, and whether of the worst group or of all images."""

    heading: str
    column: str
    worst: bool


class Difference(NamedTuple):
    """A difference with its interval, its p-value (None: not tested), what both are over, whether of enough images."""

    interval: Interval
    p_value: float | None
    over: str
    claimable: bool


def measures(paper: Paper) -> list[Measure]:
    """Return the columns of a paper's table: natural, the first member's last iterate, the worst case of all."""
    member, heading = paper.columns[0]
    kinds = (("natural", "natural"), (member, heading), ("robust", "robust"))
    return [
        Measure(f"{head} {'worst group' if worst else 'average'}", column, worst)
        for column, head in kinds
        for worst in (False, True)
    ]


def groups_of(entry: Entry) -> NDArray[np.int64]:
    """Return the group of each test image, int64 ``(N,)``."""
    names = [name for name in entry.record if name.startswith("group/")]
    result = np.zeros(entry.images, dtype=np.int64)
    for name in names:
        result[unpacked(entry.record[name], entry.images)] = int(name.partition("/")[2])
    return result


def _value(entry: Entry, measure: Measure) -> float:
    bits = unpacked(entry.record[measure.column], entry.images)
    return worst_group(bits, groups_of(entry)) if measure.worst else float(bits.mean())


def _interval(entries: Sequence[Entry], measure: Measure) -> Interval:
    """Return mean and t interval over seeds, or of one seed Wilson's (average) or the bootstrap's (worst group)."""
    if len(entries) > 1:
        return t_interval([_value(entry, measure) for entry in entries])
    bits = unpacked(entries[0].record[measure.column], entries[0].images)
    return (
        bootstrap_minimum(bits, groups_of(entries[0]))
        if measure.worst
        else wilson(int(bits.sum()), bits.size)
    )


def _weighted(entries: Sequence[Entry], kind: str) -> str:
    values = [value for entry in entries if (value := entry.weighted.get(kind)) is not None]
    if not values:
        return "–"
    return interval_cell(t_interval(values)) if len(values) > 1 else f"{100 * values[0]:.1f}"


def group_table(paper: Paper, results: ResultFile, rows: Sequence[Row]) -> Table:
    """Return accuracies in percent, average and worst group, one row per method that was run."""
    chosen = measures(paper)
    heads = ["method", *(measure.heading for measure in chosen)]
    heads += ["train-weighted natural", "train-weighted robust", "seeds", "training"]
    lines = []
    for row in rows:
        entries = results.of_row(row.name)
        if not entries:
            continue
        cells = [interval_cell(_interval(entries, measure)) for measure in chosen]
        cells += [_weighted(entries, kind) for kind in ("natural", "robust")]
        seeds = " ".join(str(entry.seed) for entry in entries)
        lines.append((row.title, *cells, seeds, f"{np.mean([e.train_seconds for e in entries]):.0f} s"))
    return Table(
        tuple(heads), tuple(lines), title=f"{paper.title}, {results.scale}", notes=_notes(paper, results)
    )


def _notes(paper: Paper, results: ResultFile) -> tuple[str, ...]:
    counts = np.bincount(groups_of(results.entries[0]))
    reading, setting, *others = run_notes(paper, results)
    told = [
        f"{len(counts)} groups of {counts.min()} to {counts.max()} test images. The worst group is found anew in each "
        "seed and column; its interval is over seeds where there are several, else a bootstrap over images within "
        "groups. The minimum of noisy accuracies lies below the accuracy of the group that is truly worst.",
        "Robust: the worst case of all attacks. Train-weighted: the groups' accuracies weighted by their share of the "
        "training images.",
    ]
    if not enough_images([int(count) for count in counts]):
        told.append(f"A group has fewer than {MIN_IMAGES} test images: nothing is claimed of it.")
    return (reading, setting, *told, *others)


def _difference(pairs: Sequence[tuple[Entry, Entry]], measure: Measure) -> Difference:
    """Return the first methods' accuracy minus the second ones', paired by seed and image."""
    mine, theirs = (
        np.stack([unpacked(pair[side].record[measure.column], pair[side].images) for pair in pairs])
        for side in (0, 1)
    )
    if not measure.worst:
        found = paired_difference(mine, theirs)
        p_value = found.p_value if found.claimable else None
        return Difference(found.interval, p_value, found.over, found.claimable)
    groups = groups_of(pairs[0][0])
    enough = enough_images([int(count) for count in np.bincount(groups)])
    if len(pairs) == 1:
        return Difference(paired_worst(mine[0], theirs[0], groups), None, "images", enough)
    values = [worst_group(a, groups) - worst_group(b, groups) for a, b in zip(mine, theirs, strict=True)]
    return Difference(t_interval(values), t_test(values) if enough else None, "seeds", enough)


def group_difference_table(paper: Paper, results: ResultFile, rows: Sequence[Row]) -> Table | None:
    """Return the differences of the paper's pairs, paired by seed and image; None if no pair was run."""
    titles = {row.name: row.title for row in rows}
    chosen = [measure for measure in measures(paper) if measure.column != paper.columns[0][0]]
    found: list[tuple[str, list[Difference], int]] = []
    left_out: dict[str, list[int]] = {}
    for first, second in paper.pairs:
        if first not in titles or second not in titles:
            continue
        title = f"{titles[first]} minus {titles[second]}"
        pairs, left_out[title] = results.paired(first, second)
        if pairs:
            found.append((title, [_difference(pairs, measure) for measure in chosen], len(pairs)))
    notes = (*_difference_notes(found), *left_out_note(left_out))
    if not notes:
        return None
    tested = [d.p_value for _, differences, _ in found for d in differences if d.p_value is not None]
    adjusted = iter(holm(tested))
    lines = []
    for title, differences, seeds in found:
        cells: list[str] = []
        for difference in differences:
            low, high = (100 * end for end in difference.interval[1:])
            cells.append(f"{100 * difference.interval.estimate:+.1f} [{low:+.1f}, {high:+.1f}]")
            cells.append("–" if difference.p_value is None else p_cell(next(adjusted)))
        lines.append((title, *cells, str(seeds)))
    heads = ("difference", *(part for measure in chosen for part in (measure.heading, "p (Holm)")), "seeds")
    return Table(heads, tuple(lines), title="Paired differences", notes=notes)


def _difference_notes(found: Sequence[tuple[str, Sequence[Difference], int]]) -> tuple[str, ...]:
    if not found:
        return ()
    over = {difference.over for _, differences, _ in found for difference in differences}
    notes = [
        "Points, on the same seeds and test images; 95% intervals, one by one; p over all cells together (Holm)."
    ]
    if "seeds" in over:
        notes.append(
            "Over seeds: in each seed the worst group of one method minus the worst group of the other, which need not "
            "be the same group, on the same images; mean over seeds, t interval with one degree of freedom less than "
            "seeds. It is about new trainings, the test images staying as they are."
        )
    if "images" in over:
        notes.append(
            "One seed: bootstrap over images within groups, both methods' answers kept together; it is about these two "
            "networks only, and the difference of worst groups is not tested."
        )
    if not all(difference.claimable for _, differences, _ in found for difference in differences):
        notes.append(
            f"Fewer than {MIN_IMAGES} images (worst group: of any group): nothing is claimed of such differences, and "
            "no p is given."
        )
    return tuple(notes)


def per_group_table(paper: Paper, results: ResultFile, rows: Sequence[Row]) -> Table:
    """Return each group's accuracy, natural and robust."""
    counts = np.bincount(groups_of(results.entries[0]))
    names = [group["name"] for group in results.entries[0].summary["groups"]]
    kinds = (("natural", "natural"), ("robust", "robust"))
    lines = []
    for row in rows:
        entries = results.of_row(row.name)
        if entries:
            cells = [
                interval_cell(_of_group(entries, column, g))
                for column, _ in kinds
                for g in range(len(counts))
            ]
            lines.append((row.title, *cells))
    heads = ("method", *(f"{head}, {name}" for _, head in kinds for name in names))
    note = "Percent; mean and 95% t interval over seeds, or Wilson's over images with one seed."
    return Table(heads, tuple(lines), title=f"{paper.title}: each group", notes=(note,))


def _of_group(entries: Sequence[Entry], column: str, group: int) -> Interval:
    chosen = [unpacked(e.record[column], e.images)[groups_of(e) == group] for e in entries]
    if len(chosen) > 1:
        return t_interval([float(bits.mean()) for bits in chosen])
    return wilson(int(chosen[0].sum()), chosen[0].size)


def _picture(results: ResultFile, rows: Sequence[Row], folder: Path) -> Picture:
    methods: dict[str, dict[str, tuple[Dot, Dot]]] = {}
    for row in rows:
        entries = results.of_row(row.name)
        if not entries:
            continue
        methods[row.title] = {}
        for column, head in (("natural", "natural"), ("robust", "robust")):
            dots = []
            for worst in (False, True):
                measure = Measure(head, column, worst)
                seeds = tuple(_value(e, measure) for e in entries) if len(entries) > 1 else ()
                dots.append(Dot(_interval(entries, measure), seeds))
            methods[row.title][head] = (dots[0], dots[1])
    return saved_picture(
        group_figure(methods),
        folder / "comparison",
        alt="Average and worst-group accuracy of each method, natural and robust, with 95% intervals",
        caption="Average and worst group of each method. Robust: right at every iterate of every attack.",
    )


def write_group_tables(paper: Paper, results: ResultFile, rows: Sequence[Row], folder: Path) -> Table:
    """Write the page, its tables and its figure into ``folder``; returns the main table."""
    table = group_table(paper, results, rows)
    parts = (Notice(paper.reading[results.scale]), table, Pictures((_picture(results, rows, folder),)))
    sections = [Section("Results", parts), Section("Each group", (per_group_table(paper, results, rows),))]
    differences = group_difference_table(paper, results, rows)
    if differences is not None:
        sections.append(Section("Paired differences", (differences,)))
    sections.append(Section("Cost", (cost_table(paper, results, rows),)))
    write_page(folder, table.title, sections)
    return table
