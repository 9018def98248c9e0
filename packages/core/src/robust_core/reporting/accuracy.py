"""An evaluation's summary as tables and figures: accuracies, cost, classes and groups."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from robust_core.reporting.curves import metric_label
from robust_core.reporting.figures import (
    COLORS,
    GREY,
    SMALL,
    WIDTH,
    error_ends,
    new_figure,
    percent_axis,
    tidy,
)
from robust_core.reporting.tables import Table, percent, share_cell

__all__ = ["accuracy_bars", "accuracy_table", "member_label", "part_dots", "part_table", "passes_cell"]

Summary = Mapping[str, Any]
MAX_PARTS = 20
MEMBERS = {
    "autoattack": "AutoAttack",
    "cw": "C&W",
    "cw-batch-sum": "C&W, batch sum",
    "apgd-ce": "APGD-CE",
    "apgd-margin": "APGD, margin",
    "fab": "FAB",
}


def member_label(name: str) -> str:
    """Return how tables name a member of a protocol.

    >>> member_label("pgd-20"), member_label("autoattack"), member_label("apgd-ce")
    ('PGD-20', 'AutoAttack', 'APGD-CE')
    """
    return MEMBERS.get(name) or metric_label(re.sub(r"-(\d+)$", r"\1", name))


def accuracy_table(summary: Summary, title: str = "") -> Table:
    """Return natural accuracy, each member and the worst case, with intervals, images, passes and seconds."""
    count = summary["images"]
    natural = share_cell(summary["natural_accuracy"], summary["natural_interval"])
    rows: list[tuple[str, ...]] = [("natural", natural, natural, "–", str(count), "–", "–")]
    notes: list[str] = []
    for name, member in summary["members"].items():
        rows.append(_member_row(name, member))
        if member["status"] != "run":
            notes.append(f"{member_label(name)} was not run: {member['remedy']}")
        notes += [f"{member_label(name)}: {flag}" for flag in member["flags"]]
        if member["settings"]:
            notes.append(f"{member_label(name)}: {_settings(member)}")
    if summary["robust_accuracy"] is not None:
        robust = share_cell(summary["robust_accuracy"], summary["robust_interval"])
        rows.append(("worst case", "–", robust, "–", str(count), "–", f"{summary['seconds']:.1f}"))
    for part in ("worst_class", "worst_group"):
        rows += _worst_rows(summary, part)
    if not summary["complete"]:
        notes.append("Not every member attacked every image: the worst case is over those that did.")
    return Table(
        columns=(
            "attack",
            "last iterate (%)",
            "every iterate (%)",
            "only this breaks",
            "images",
            "passes per image",
            "seconds",
        ),
        rows=tuple(rows),
        title=title,
        notes=(
            "In brackets: 95% Wilson intervals over images, bootstrap intervals for worst class and group.",
            "Last iterate: as published. Every iterate: right at zero perturbation and at every iterate.",
            "Passes per image: forward + backward of the attack, then the forward passes that judge it.",
            summary["note"],
            *notes,
            f"Precision {summary['precision']}, device {summary['device']}, seed {summary['seed']}.",
        ),
    )


def _member_row(name: str, member: Mapping[str, Any]) -> tuple[str, ...]:
    if member["status"] != "run":
        return (member_label(name), "not run", "not run", "–", "0", "–", "–")
    return (
        member_label(name),
        share_cell(member["last_accuracy"], member["last_interval"]),
        share_cell(member["robust_accuracy"], member["robust_interval"]),
        str(member["only_this_breaks"]),
        str(member["images"]),
        passes_cell(member),
        f"{member['seconds']:.1f}",
    )


def passes_cell(member: Mapping[str, Any]) -> str:
    """Return a member's passes per image: forward + backward of the attack, then the forward passes that judge."""
    attack = f"{member['forward_per_image']:.4g} + {member['backward_per_image']:.4g}"
    return f"{attack}, {member['judging_per_image']:.3g}"


def _worst_rows(summary: Summary, part: str) -> list[tuple[str, ...]]:
    """Rows of the worst class or group: natural and worst case."""
    worst = summary[part]
    if worst is None:
        return []
    rows: list[tuple[str, ...]] = []
    for kind in ("natural", "robust"):
        if worst[f"{kind}_accuracy"] is None:
            continue
        cell = share_cell(worst[f"{kind}_accuracy"], worst[f"{kind}_interval"])
        mark = "" if worst["enough_images"] else f" (fewer than {worst['min_images']} images: no claim)"
        label = f"{part.replace('_', ' ')}, {'natural' if kind == 'natural' else 'worst case'}"
        rows.append((f"{label}: {worst[f'{kind}_name']}{mark}", "–", cell, "–", "–", "–", "–"))
    return rows


def _settings(member: Mapping[str, Any]) -> str:
    """The settings in one line, budgets as 255ths."""
    parts = []
    for key, value in member["settings"].items():
        budget = key in ("eps", "step_size") and member["settings"].get("norm", "linf") == "linf"
        parts.append(f"{key} {255 * value:.4g}/255" if budget else f"{key} {value}")
    return ", ".join(parts) + "."


def part_table(rows: Sequence[Mapping[str, Any]], kind: str, title: str = "") -> Table:
    """Return accuracies per class or group (``kind``); of more than MAX_PARTS only the lowest."""
    shown = _shown(rows)
    notes = ["95% Wilson intervals over images."]
    if len(shown) < len(rows):
        notes.append(f"The {len(shown)} lowest of {len(rows)}, lowest first.")
    if not all(row["enough_images"] for row in shown):
        notes.append("* fewer than 200 images: nothing is claimed about this row.")
    return Table(
        columns=(kind, "images", "natural (%)", "worst case (%)"),
        rows=tuple(
            (
                row["name"] + ("" if row["enough_images"] else " *"),
                str(row["images"]),
                share_cell(row["natural_accuracy"], row["natural_interval"]),
                share_cell(row["robust_accuracy"], row["robust_interval"]),
            )
            for row in shown
        ),
        title=title,
        notes=tuple(notes),
    )


def _shown(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    if len(rows) <= MAX_PARTS:
        return list(rows)
    present = [row for row in rows if row["images"] > 0]
    key = "natural_accuracy" if present[0]["robust_accuracy"] is None else "robust_accuracy"
    return sorted(present, key=lambda row: row[key])[:MAX_PARTS]


def accuracy_bars(summary: Summary) -> Figure:
    """Return bars with 95% intervals: natural, each member, the worst case, worst class and group."""
    entries: list[tuple[str, float, Any, str]] = [
        ("natural", summary["natural_accuracy"], summary["natural_interval"], COLORS[0])
    ]
    for name, member in summary["members"].items():
        if member["status"] == "run":
            label = member_label(name)
            entries += [
                (f"{label}, last iterate", member["last_accuracy"], member["last_interval"], COLORS[5]),
                (f"{label}, every iterate", member["robust_accuracy"], member["robust_interval"], COLORS[4]),
            ]
    if summary["robust_accuracy"] is not None:
        entries.append(("worst case", summary["robust_accuracy"], summary["robust_interval"], COLORS[1]))
    for part in ("worst_class", "worst_group"):
        worst = summary[part] or {}
        kind = "natural" if summary["robust_accuracy"] is None else "robust"
        if worst.get(f"{kind}_accuracy") is not None:
            label = f"{part.replace('_', ' ')}\n({worst[f'{kind}_name']})"
            entries.append((label, worst[f"{kind}_accuracy"], worst[f"{kind}_interval"], COLORS[3]))
    figure = new_figure(WIDTH, 0.9 + 0.42 * len(entries))
    axes = figure.subplots()
    for place, (_, share, interval, color) in enumerate(entries):
        axes.barh(place, 100 * share, color=color, height=0.62)
        ends = error_ends(share, interval)
        axes.errorbar(100 * share, place, xerr=ends, color="black", capsize=3.5, linewidth=1.3)
        beyond = 100 * share + ends[1][0]
        axes.text(beyond + 1.5, place, percent(share), va="center", fontsize=SMALL)
    axes.set_yticks(range(len(entries)), [entry[0] for entry in entries])
    axes.invert_yaxis()
    tidy(axes, grid="x")
    percent_axis(axes, "x", "accuracy (%)", high=108)
    axes.set_xticks(range(0, 101, 20))
    return figure


def part_dots(rows: Sequence[Mapping[str, Any]], kind: str) -> Figure:
    """Return natural and worst-case accuracy per class or group as dots with 95% Wilson intervals."""
    shown = [row for row in _shown(rows) if row["images"] > 0]
    figure = new_figure(WIDTH, 1.15 + 0.34 * len(shown))
    axes = figure.subplots()
    styles = (("natural", "natural", COLORS[0], "o", -0.13), ("robust", "worst case", COLORS[1], "s", 0.13))
    for key, label, color, marker, offset in styles:
        drawn = [(i, row) for i, row in enumerate(shown) if row[f"{key}_accuracy"] is not None]
        for number, (place, row) in enumerate(drawn):
            share = row[f"{key}_accuracy"]
            axes.errorbar(
                100 * share,
                place + offset,
                xerr=error_ends(share, row[f"{key}_interval"]),
                color=color,
                marker=marker,
                markersize=5,
                capsize=2.5,
                linewidth=1.3,
                linestyle="none",
                label=label if number == 0 else None,
            )
    for place in range(len(shown) - 1):
        axes.axhline(place + 0.5, color="#eceff2", linewidth=0.7, zorder=0)
    axes.set_yticks(range(len(shown)), [row["name"] for row in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    tidy(axes, grid="x")
    percent_axis(axes, "x", f"accuracy per {kind} (%)", low=-2, high=102)
    axes.set_xticks(range(0, 101, 20))
    axes.tick_params(axis="y", length=0, labelcolor=GREY)
    figure.legend(loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False)
    return figure
