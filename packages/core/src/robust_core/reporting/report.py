"""The report of one run, made from its directory alone: figures as PNG and one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from robust_core.errors import UserError
from robust_core.reporting.accuracy import accuracy_bars, accuracy_table, part_dots, part_table
from robust_core.reporting.curves import accuracy_curves, loss_curves
from robust_core.reporting.figures import save_figure
from robust_core.reporting.gallery import gallery_caption, gallery_figure
from robust_core.reporting.honest import examination_figure, examination_table, sanity_as_table
from robust_core.reporting.page import Block, Facts, Notice, Picture, Pictures, Section, render_page
from robust_core.reporting.run_files import RunFiles, read_run
from robust_core.reporting.tables import percent
from robust_core.storage import write_whole

__all__ = ["write_report"]


def write_report(run_dir: str | Path) -> Path:
    """Write ``RUN/report/*.png`` and ``RUN/report/report.html`` and return the page's path.

    What is missing in the run is told on the page. Raises ``UserError`` for a directory that is no run.
    """
    run = read_run(run_dir)
    folder = run.path / "report"
    sections = [_evaluation(folder, name, summary) for name, summary in run.evaluations.items()]
    sections += _examination(folder, run)
    sections += [_curves(folder, run), _gallery(folder, run), _setup(run)]
    if run.problems:
        sections.insert(0, Section("What is missing", tuple(Notice(problem) for problem in run.problems)))
    page = folder / "report.html"
    title = f"Run {run.path.resolve().name}"
    write_whole(page, render_page(title, sections, subtitle=_subtitle(run)))
    return page


def _subtitle(run: RunFiles) -> str:
    """One line on top: what was run on what, and the main figures."""
    config = run.config.get("config")
    settings: Mapping[str, Any] = config if isinstance(config, Mapping) else {}
    parts = [str(settings[key]) for key in ("method", "model", "data", "dataset") if settings.get(key)]
    for name, summary in run.evaluations.items():
        natural = percent(summary["natural_accuracy"])
        robust = summary["robust_accuracy"]
        found = f"{name}: natural {natural}%"
        parts.append(
            found if robust is None else f"{found}, worst case of {summary['protocol']} {percent(robust)}%"
        )
    return " · ".join(parts)


def _picture(figure: Figure, path: Path, alt: str, caption: str = "") -> Picture:
    """Save a figure and return it for the page."""
    return Picture(save_figure(figure, path).read_bytes(), alt, caption)


def _evaluation(folder: Path, name: str, summary: dict[str, Any]) -> Section:
    """One evaluation: bars, tables, classes and groups."""
    robust = summary["robust_accuracy"]
    alt = f"Bars of accuracy: natural {percent(summary['natural_accuracy'])}%"
    alt += "" if robust is None else f", worst case {percent(robust)}%"
    pictures = [
        _picture(
            accuracy_bars(summary),
            folder / f"accuracy-{name}.png",
            f"{alt}; the table below has all figures.",
            "Accuracy with 95% intervals over images.",
        )
    ]
    tables: list[Block] = []
    for kind, rows in (("class", summary["classes"]), ("group", summary["groups"])):
        if not rows:
            continue
        worst = summary[f"worst_{kind}"]
        pictures.append(
            _picture(
                part_dots(rows, kind),
                folder / f"{kind}-{name}.png",
                f"Natural and worst-case accuracy per {kind}; lowest natural: {worst['natural_name']}, "
                f"lowest worst case: {worst['robust_name'] or 'not attacked'}.",
                f"Accuracy per {kind} with 95% Wilson intervals.",
            )
        )
        tables.append(part_table(rows, kind, title=f"Per {kind}"))
    blocks: list[Block] = [accuracy_table(summary, title=f"Protocol {summary['protocol']}")]
    return Section(f"Evaluation: {name}", (*blocks, Pictures(tuple(pictures)), *tables))


def _examination(folder: Path, run: RunFiles) -> list[Section]:
    """What attacks that know the network found, and the sanity table; nothing where neither was made."""
    blocks: list[Block] = []
    if run.examination is not None:
        blocks.append(examination_table(run.examination, title="Attacks that know the network"))
        worst = percent(float(run.examination.worst_case().mean()))
        together = "worst case of all" if run.examination.claims() else "all that ran together"
        blocks.append(
            Pictures(
                (
                    _picture(
                        examination_figure(run.examination),
                        folder / "adaptive.png",
                        f"Accuracy under each attack alone; {together} {worst}%.",
                        f"Accuracy under each attack alone with 95% Wilson intervals, and {together}.",
                    ),
                )
            )
        )
    if run.sanity:
        blocks.append(sanity_as_table(run.sanity, title="Sanity table"))
    return [Section("Attacks that know the network", tuple(blocks))] if blocks else []


def _curves(folder: Path, run: RunFiles) -> Section:
    """Learning curves, or what is missing for them."""
    pictures = []
    accuracy = accuracy_curves(run.epochs, run.steps)
    if accuracy is not None:
        ends = [f"{key} {percent(v)}%" for key, v in run.epochs[-1].items() if key.endswith("_accuracy")]
        alt = f"Accuracies over training steps, at the end: {', '.join(ends)}."
        pictures.append(
            _picture(
                accuracy,
                folder / "accuracy-curves.png",
                alt,
                "Accuracy while training, as logged after epochs.",
            )
        )
    loss = loss_curves(run.steps)
    if loss is not None:
        caption = "Loss while training: thin single steps, thick means; spikes may leave the picture."
        pictures.append(_picture(loss, folder / "loss-curves.png", "Loss over training steps.", caption))
    blocks: list[Block] = []
    if accuracy is None:
        blocks.append(Notice("No accuracy was logged while training: there is no accuracy curve."))
    if loss is None:
        blocks.append(Notice("No loss was logged: there is no loss curve."))
    return Section("Learning curves", (*blocks, *([Pictures(tuple(pictures))] if pictures else [])))


def _gallery(folder: Path, run: RunFiles) -> Section:
    """Images before and after the attack."""
    if run.gallery is None:
        return Section("Gallery", (Notice("There are no images to show."),))
    try:
        caption = gallery_caption(run.gallery)
        picture = _picture(
            gallery_figure(run.gallery),
            folder / "gallery.png",
            "Rows of images: natural, perturbation and adversarial, with what the network says about them.",
            caption,
        )
    except UserError as error:
        return Section("Gallery", (Notice(str(error)),))
    return Section("Gallery", (picture,))


def _setup(run: RunFiles) -> Section:
    """Settings, data, machine, and whatever else the run wrote down about itself; timings."""
    blocks: list[Block] = []
    single = {key: value for key, value in run.config.items() if not isinstance(value, Mapping)}
    if single:
        blocks.append(Facts(single))
    titles = {"config": "Settings", "data": "Data", "machine": "Machine"}
    for key in (*titles, *(key for key in run.config if key not in titles)):
        values = run.config.get(key)
        if isinstance(values, Mapping) and values:
            blocks.append(Facts(values, title=titles.get(key, key.capitalize())))
        elif run.config and key in titles:
            blocks.append(Notice(f"config.json says nothing about: {titles[key].lower()}."))
    if run.timings:
        blocks.append(Facts(run.timings[-1], title="Timings (last line of timings.jsonl)"))
    if not blocks:
        blocks.append(Notice("The settings of this run are not known."))
    return Section("Settings and machine", tuple(blocks))
