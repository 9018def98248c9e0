"""Attacks that know the network, and signs of a robustness that is none, as tables and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from robust_core.evaluation import Check, Examination, wilson
from robust_core.evaluation.work import TAKEN_OVER
from robust_core.reporting.accuracy import member_label, passes_cell
from robust_core.reporting.figures import (
    COLORS,
    GREY,
    SMALL,
    error_ends,
    new_figure,
    percent_axis,
    tidy,
)
from robust_core.reporting.tables import Table, interval_cell, percent, share_cell

LONGEST = 34
"""Letters of a label in the figure; names of places to transfer from may be long."""

__all__ = ["examination_figure", "examination_table", "sanity_as_table"]


def examination_table(found: Examination, title: str = "") -> Table:
    """Return each member alone, what it broke in the cascade, and the worst case."""
    cascade = found.cascade.summary()
    alone = None if found.alone is None else found.alone.summary()
    by_name = {} if alone is None else alone["members"]
    rows = [_member_row(name, by_name.get(name), member) for name, member in cascade["members"].items()]
    natural = share_cell(cascade["natural_accuracy"], cascade["natural_interval"])
    bits = found.worst_case()
    interval = wilson(int(bits.sum()), len(bits))
    worst = interval_cell(interval)
    last = "worst case" if found.claims() else "of those that ran"
    notes = (
        []
        if alone is None
        else [f"Alone, and what only this breaks: of the first {alone['images']} test images."]
    )
    notes += [
        "An attack breaks an image that is right at zero perturbation by any of its iterates. In the cascade it "
        f"attacks what the attacks above it left of the first {cascade['images']} images.",
        "In brackets: 95% Wilson intervals over images. " + cascade["note"],
        "Passes per attacked image: forward + backward of the attack, then those that judge it.",
    ]
    gain, gap = found.gain(), found.precision_gap()
    if gain is not None and found.long is not None:
        notes.append(
            f"More steps lower the worst case of the first {len(found.long.labels)} images by {100 * gain:.1f} points."
        )
    if gap is not None and found.float64 is not None:
        notes.append(
            f"float32 and float64 differ by {100 * gap:.1f} points on the first {len(found.float64.labels)} images."
        )
    for name, member in cascade["members"].items():
        if member["status"] != "run":
            notes.append(f"{member_label(name)} was not run: {member['remedy']}")
        notes += [f"{member_label(name)}: {flag}" for flag in member["flags"] if flag != TAKEN_OVER]
    taken = [
        member_label(name) for name, member in cascade["members"].items() if TAKEN_OVER in member["flags"]
    ]
    if taken:
        notes.append(f"{', '.join(taken)}: {TAKEN_OVER}.")
    if not any(member.kind == "transfer" for member in found.cascade.protocol.members):
        notes.append("No transfer: no other networks were given.")
    if not found.claims():
        notes.append("AutoAttack or another member did not run: no worst case is claimed.")
    notes.append(_settings_note(found))
    return Table(
        columns=(
            "attack",
            "alone (%)",
            "only this breaks",
            "attacked in the cascade",
            "broken",
            "passes per image",
        ),
        rows=(
            ("natural", natural, "–", str(cascade["images"]), "–", "–"),
            *rows,
            (last, worst, "–", str(cascade["images"]), "–", "–"),
        ),
        title=title,
        notes=tuple(notes),
    )


def _settings_note(found: Examination) -> str:
    """Say under which budget and where the suite ran."""
    settings = [member.settings for member in found.cascade.protocol.members]
    eps = sorted({f"{255 * float(entry['eps']):.4g}/255" for entry in settings})
    steps = sorted({str(entry["steps"]) for entry in settings if "steps" in entry})
    queries = sorted({str(entry["queries"]) for entry in settings if "queries" in entry})
    cost = sum(run.seconds for run in found.cascade.runs.values())
    return (
        f"eps {', '.join(eps)}; steps of the gradient attacks: {', '.join(steps)}; queries of those without gradients: "
        f"{', '.join(queries)}; the cascade took {cost:.0f} s on {found.cascade.device}, {found.cascade.precision}, "
        f"seed {found.cascade.seed}."
    )


def _member_row(name: str, alone: Mapping[str, Any] | None, cascade: Mapping[str, Any]) -> tuple[str, ...]:
    label = member_label(name)
    if cascade["status"] != "run":
        return (label, "not run", "–", "0", "–", "–")
    counted = cascade if alone is None or alone["status"] != "run" or cascade["images"] else alone
    passes = passes_cell(counted)
    if alone is None or alone["status"] != "run":
        return (label, "–", "–", str(cascade["images"]), str(cascade["breaks"]), passes)
    own = share_cell(alone["robust_accuracy"], alone["robust_interval"])
    return (
        label,
        own,
        str(alone["only_this_breaks"]),
        str(cascade["images"]),
        str(cascade["breaks"]),
        passes,
    )


def sanity_as_table(checks: Sequence[Check], title: str = "") -> Table:
    """Return one line per check with its figures and verdict."""
    images = max((check.images for check in checks), default=0)
    few = " Fewer than 500 images: a verdict here means little." if images < 500 else ""
    return Table(
        columns=("check", "fails when", "found", "verdict"),
        rows=tuple((check.name, check.fails_when, check.figures, check.verdict) for check in checks),
        alignment="llll",
        title=title,
        notes=(
            f"On the first {images} test images.{few}",
            "Passing every line proves nothing; failing one means that the robust accuracy is not to be believed.",
        ),
    )


def examination_figure(found: Examination) -> Figure:
    """Return accuracy under each member alone, between natural accuracy and the worst case of all together."""
    shown = found.alone or found.cascade
    count = len(shown.labels)
    natural = float(shown.natural.mean())
    worst = found.worst_case()
    # of a cascade alone the first member is the only one that attacked everything
    names = [name for name in shown.robust if (shown.attacked[name] | ~shown.natural).all()]
    figure = new_figure(6.2, 1.5 + 0.24 * (len(names) + 2))
    axes = figure.subplots()
    shares = [(member_label(name), shown.robust[name] & shown.natural, COLORS[0]) for name in names]
    shares.append((f"all together ({len(worst)} images)", worst, COLORS[1]))
    for place, (_, bits, color) in enumerate(shares):
        interval = wilson(int(bits.sum()), len(bits))
        axes.errorbar(
            100 * interval.estimate,
            place,
            xerr=error_ends(interval.estimate, (interval.low, interval.high)),
            color=color,
            marker="o" if color == COLORS[0] else "s",
            markersize=5,
            capsize=2.5,
            linewidth=1.3,
        )
    axes.axvline(
        100 * natural, color=GREY, linestyle="--", linewidth=1.2, label=f"natural: {percent(natural)}%"
    )
    labels = [label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…" for label, _, _ in shares]
    axes.set_yticks(range(len(shares)), labels)
    axes.set_ylim(len(shares) - 0.5, -0.5)
    figure.legend(loc="outside upper center", fontsize=SMALL, frameon=False)
    tidy(axes, grid="x")
    percent_axis(axes, "x", f"accuracy (%), each alone, {count} images", low=-2, high=102)
    return figure
