"""The published log files of a run, written from its metrics: three CSV files and the text."""

from __future__ import annotations

import csv
import glob
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gdro_at.config import GdroConfig
from gdro_at.statistics import csv_columns
from robust_core.data import ImageSet
from robust_core.errors import UserError
from robust_core.storage import write_whole
from robust_core.training import RunDirectory

__all__ = ["counts_text", "log_files", "write_logs"]

TEST_ROW = "test.json"
COUNTS = "counts.txt"


def counts_text(parts: Mapping[str, ImageSet | None], *, notes: bool = False) -> str:
    """Return how many images each group has in each split, as the published text log begins.

    With ``notes`` also what the reader said of a split, such as how many images were left out.
    """
    lines = []
    for title, part in parts.items():
        lines.append(f"{title}...")
        if part is None or part.groups is None:
            continue
        names = part.info.groups or part.info.classes
        lines += [f"    {note}" for note in part.notes if notes]
        lines += [f"    {name}: n = {int((part.groups == group).sum())}" for group, name in enumerate(names)]
    return "\n".join(lines) + "\n"


def log_files(settings: Mapping[str, Any]) -> list[str]:
    """Return the patterns of the files that a run with these settings writes as logs."""
    name, text = (glob.escape(str(settings[key])) for key in ("name_index", "log_dir_text"))
    tables = (f"{name}{split}.csv" for split in ("train", "val", "test"))
    return [*tables, f"{name}[FT]{text}", COUNTS, TEST_ROW]


def write_logs(config: GdroConfig, folder: Path) -> None:
    """Write ``<name>train.csv``, ``val.csv``, ``test.csv`` and the text log of the run in ``folder``, whole.

    They follow from ``metrics.jsonl``, so that a resumed run has the same rows as one that was never stopped; nothing
    in them depends on the clock.
    """
    lines = RunDirectory.open(folder).metrics()
    train = [line for line in lines if line["kind"] == "groups"]
    validated = [line for line in lines if line["kind"] == "epoch" and "row" in line]
    test = _test(folder)
    rows = {
        "train": [line["row"] for line in train],
        "val": [{**line["row"], "epoch": line["epoch"]} for line in validated],
        "test": [test["row"]] if test else [],
    }
    groups = _groups_in(rows["train"] + rows["val"] + rows["test"])
    for split, content in rows.items():
        path = folder / f"{config.name_index}{split}.csv"
        write_whole(path, _csv(csv_columns(groups), content).encode("utf8"))
    letter = "T" if config.only_test else "F"
    rates = {line["epoch"]: line["lr"] for line in lines if line["kind"] == "step"}
    text = _text(config, folder, train, validated, rates, test)
    write_whole(folder / f"{config.name_index}{letter}{config.log_dir_text}", text.encode("utf8"))


def _test(folder: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / TEST_ROW).read_text(encoding="utf8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(f"'{folder / TEST_ROW}' is damaged; remove it and --resume {folder}.") from None
    return found


def _groups_in(rows: Sequence[Mapping[str, Any]]) -> int:
    return max((sum(name.startswith("avg_loss_group:") for name in row) for row in rows), default=0)


def _csv(columns: list[str], rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _text(
    config: GdroConfig,
    folder: Path,
    train: Sequence[Mapping[str, Any]],
    validated: Sequence[Mapping[str, Any]],
    rates: Mapping[int, float],
    test: Mapping[str, Any] | None,
) -> str:
    """Return the text log: the settings, the images per group, then epoch after epoch."""
    named = (f"{name.replace('_', ' ').capitalize()}: {value}" for name, value in config.to_dict().items())
    text = "\n".join(named) + "\n\n"
    counts = folder / COUNTS
    text += counts.read_text(encoding="utf8") if counts.exists() else ""
    best, phase = float("-inf"), None
    epochs = sorted({line["epoch"] for line in (*train, *validated)})
    for epoch in epochs:
        text += f"\nEpoch [{epoch}]:\nTraining:\n"
        text += "".join(line["text"] for line in train if line["epoch"] == epoch)
        for line in (line for line in validated if line["epoch"] == epoch):
            text += f"\nValidation:\n{line['text']}\nValidation_nat:\n"
            average, worst = line["natural_accuracy"], line["natural_worst_group"]
            text += f"Average acc: {average:.3f}, worst group: {worst:.3f}\n"
            score = line[config.selection_score]
            if line["phase"] != phase:  # the best is sought among the networks of one phase
                best, phase = float("-inf"), line["phase"]
            text += f"Current lr: {rates[epoch]:f}\nCurrent validation accuracy: {score}\n"
            if score > best:
                best = score
                text += f"Best model saved at epoch {epoch}\n"
    return text + (f"\nTest:\n{test['text']}" if test else "")
