"""What each figure cost: training time, and passes and time of every attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.reproduce.results import Entry, ResultFile
from benchmarks.reproduce.rows import Paper, Row
from robust_core.reporting import Table, passes_cell

__all__ = ["adaptive_cost", "cost_table"]

_COUNTS = ("forward_per_image", "backward_per_image", "judging_per_image")


def cost_table(paper: Paper, results: ResultFile, rows: Sequence[Row]) -> Table:
    """Return passes per image and seconds of each row's attacks, means over its seeds."""
    members = [(name, head) for name, head in paper.columns if any(_costs(e, name) for e in results.entries)]
    lines = []
    for row in rows:
        entries = results.of_row(row.name)
        if not entries:
            continue
        cells = [_cell([cost for e in entries if (cost := _costs(e, name))]) for name, _ in members]
        lines.append((row.title, f"{np.mean([e.train_seconds for e in entries]):.0f} s", *cells))
    return Table(
        ("method", "training", *(head for _, head in members)),
        tuple(lines),
        title=f"{paper.title}: cost",
        notes=(
            "Passes per image, forward + backward of the attack, then forward passes that judge it; seconds of the "
            "whole attack; means over seeds. Runs that shared the processor with others took longer than alone.",
            *_adaptive_note(results),
        ),
    )


def _adaptive_note(results: ResultFile) -> list[str]:
    """Say what is counted as the cost of the column "adaptive"."""
    examined = [entry.examined for entry in results.entries if entry.examined]
    if not examined:
        return []
    older = [entry for entry in examined if "cost" not in entry]
    if len(older) == len(examined):
        return ["Adaptive: the cascade alone is counted."]
    note = (
        "Adaptive: every part of the examination and the plain attacks are counted, as the figure is about them all; "
        "passes per examined image."
    )
    return [f"{note} Of {len(older)} older results, the cascade alone." if older else note]


def adaptive_cost(entry: Entry) -> Mapping[str, Any]:
    """Return passes per examined image and seconds of an examined entry; older ones know those of the cascade alone."""
    if "cost" in entry.examined:
        found: Mapping[str, Any] = entry.examined["cost"]
        return found
    cascade = entry.examined["cascade"]
    run = [member for member in cascade["members"].values() if member["status"] == "run"]
    added = {key: sum(member[key] * member["images"] for member in run) for key in _COUNTS}
    shares = {key: count / cascade["images"] for key, count in added.items()}
    return {**shares, "seconds": sum(member["seconds"] for member in run)}


def _costs(entry: Entry, column: str) -> Mapping[str, Any] | None:
    """Return passes per image and seconds of a column's attack; of a whole suite they are added up."""
    if column == "adaptive" and entry.examined:
        return adaptive_cost(entry)
    member = entry.summary["members"].get(column)
    if member is None and entry.examined:
        member = entry.examined["cascade"]["members"].get(column)
    return member if member is not None and member["status"] == "run" else None


def _cell(costs: Sequence[Mapping[str, Any]]) -> str:
    if not costs:
        return "not run"
    mean = {key: float(np.mean([cost[key] for cost in costs])) for key in (*_COUNTS, "seconds")}
    return f"{passes_cell(mean)}; {mean['seconds']:.0f} s"
