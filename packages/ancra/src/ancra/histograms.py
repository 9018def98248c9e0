"""``draw_hist.py``: the distances that ``feature_distance.py`` measured, of several methods in one figure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ancra.distances import QUANTITIES, Quantity, statistics_line
from ancra.features import spread_of
from ancra.inspection import InspectionScript, made_folder, write_log
from robust_core.config import expect, option
from robust_core.errors import UserError, unknown_name
from robust_core.reporting import save_figure
from robust_core.reporting.figures import COLORS, SMALL, TEXT, WIDTH, new_figure, tidy

__all__ = ["HistogramConfig", "Measured", "histogram_figure", "main", "read_measured"]

BINS = 20
ORDER = ("PGD-AT", "AT", "TRADES", "MART", "ANCRA", "ANCRA-PGD", "ANCRA-TRADES", "ANCRA-MART")
# The fourth, by the published order the method of the paper, stands out.
STYLES: tuple[tuple[str, Any], ...] = (
    (COLORS[0], "--"),
    (COLORS[1], "-."),
    (COLORS[2], ":"),
    (COLORS[6], "-"),
    (COLORS[3], (0, (5, 1))),
    (COLORS[4], (0, (3, 1, 1, 1))),
    (COLORS[5], "-"),
)
PUBLISHED_FLAGS = (
    *("--epsilon", "--seed", "--batch-size", "--no-cuda", "--dataset", "--log-path", "--target-label"),
)
EPILOG = """
Draws every method that feature_distance.py has measured in the folder; --names chooses and orders them.
"""
_DRAWN_ONLY = "nothing is measured here, the arrays of feature_distance.py are drawn"

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class HistogramConfig:
    """Settings of the figures."""

    target_label: int = option(0, "class whose measurements are drawn")
    measured: str = option(
        "./three", "folder of the arrays of feature_distance.py", flags=("--in", "--log-path")
    )
    names: str = option("", "methods to draw, in this order, with commas between (default: all)")
    out: str = option("./pictures", "folder of the figures and of eval.log")
    data: str = option("", "draw only what was measured on this dataset", flags=("--dataset",))
    epsilon: float = option(8 / 255, "no effect, as published", kind="fraction")
    seed: int = option(42, "no effect, as published")
    batch_size: int = option(128, "no effect, as published")
    no_cuda: bool = option(False, "no effect, as published")

    def validate(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            UserError: naming the flag, its value and what is expected.
        """
        expect(self.target_label >= 0, "target_label", self.target_label, "0 or more")


@dataclass(frozen=True)
class Measured:
    """What was measured of one method: its four vectors by the keys of ``QUANTITIES``, and its record."""

    name: str
    arrays: Mapping[str, Array]
    record: Mapping[str, Any]


def read_measured(folder: Path, label: int) -> list[Measured]:
    """Return what lies in a folder of a class, methods in the published order, others behind by name.

    Raises:
        UserError: if nothing is there, or a file of a method is missing or damaged.
    """
    if not folder.is_dir():
        raise UserError(f"'{folder}' is no folder; run feature_distance.py first, or name its --out by --in.")
    pattern = re.compile(rf"{label}-(.+)-(?:{'|'.join(quantity.key for quantity in QUANTITIES)})\.npy")
    names = {match[1] for path in folder.iterdir() if (match := pattern.fullmatch(path.name))}
    if not names:
        raise UserError(
            f"'{folder}' holds no measurement of class {label}; run feature_distance.py --target-label {label} "
            f"--out '{folder}' first."
        )
    return [_read_method(folder, label, name) for name in sorted(names, key=_place)]


def histogram_figure(quantity: Quantity, methods: Sequence[Measured]) -> Figure:
    """Return the histograms of one quantity, one outline per method, over common bins.

    Common bins, unlike the published ones (each method's own range): heights can then be compared, and a
    method whose values lie close together does not tower over the others.
    """
    figure = new_figure(WIDTH, 3.4)
    axes = figure.subplots()
    values = [method.arrays[quantity.key] for method in methods]
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    middle, half = (low + high) / 2, max((high - low) / 2, 1e-6)
    bins = np.linspace(middle - half, middle + half, BINS + 1)
    for number, (method, shown) in enumerate(zip(methods, values, strict=True)):
        color, line = STYLES[number]
        axes.hist(shown, bins=bins, density=True, color=color, alpha=0.14, histtype="stepfilled")  # type: ignore[arg-type]
        axes.hist(
            shown,
            bins=bins,  # type: ignore[arg-type]
            density=True,
            histtype="step",
            color=color,
            linewidth=1.8,
            linestyle=line,
            label=method.name,
        )
    axes.set_xlabel(quantity.label, fontsize=TEXT)
    axes.set_ylabel("Frequency", fontsize=TEXT)
    axes.set_title(_title(quantity, methods), fontsize=TEXT, loc="left")
    # lines, not boxes: the dashes tell methods apart in grey print
    handles = [
        axes.plot([], [], color=color, linestyle=line, linewidth=1.8)[0]
        for color, line in STYLES[: len(methods)]
    ]
    names = [method.name for method in methods]
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=SMALL, frameon=False)
    tidy(axes)
    return figure


def run(config: HistogramConfig, given: Mapping[str, Any]) -> None:
    """Draw the four figures, print and log the published statistics."""
    del given
    methods = _chosen(read_measured(Path(config.measured).expanduser(), config.target_label), config)
    out = made_folder(config.out)
    lines = [
        f"{method.name}: {statistics_line(quantity.title, spread_of(torch.from_numpy(method.arrays[quantity.key])))}"
        for quantity in QUANTITIES
        for method in methods
    ]
    lines += _unlike(methods)
    for line in lines:
        print(line)
    for quantity in QUANTITIES:
        figure = histogram_figure(quantity, methods)
        for ending in ("pdf", "png"):
            path = out / f"Class-{config.target_label}-four-{quantity.key}.{ending}"
            save_figure(figure, path)
        print(f"figure: {path}")
    write_log(out / "eval.log", config, lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``draw_hist.py``; returns the exit code."""
    return InspectionScript(
        name="draw_hist.py",
        description="Overlay the feature distances of several methods, as measured by feature_distance.py.",
        epilog=EPILOG,
        kind=HistogramConfig,
        run=run,
        published=PUBLISHED_FLAGS,
        idle=dict.fromkeys(("epsilon", "seed", "batch_size", "no_cuda"), _DRAWN_ONLY),
    )(arguments)


def _place(name: str) -> tuple[int, str]:
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def _read_method(folder: Path, label: int, name: str) -> Measured:
    arrays = {}
    for quantity in QUANTITIES:
        path = folder / f"{label}-{name}-{quantity.key}.npy"
        if not path.is_file():
            raise UserError(
                f"'{path}' is missing, though other arrays of {name} are there; measure {name} again with "
                "feature_distance.py, or leave it out by --names."
            )
        arrays[quantity.key] = _read_array(path)
    return Measured(name, arrays, _read_record(folder / f"{label}-{name}.json"))


def _read_array(path: Path) -> Array:
    try:
        with path.open("rb") as stream:
            values = np.load(stream, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        values = None
    whole = isinstance(values, np.ndarray) and values.ndim == 1 and values.size >= 2
    if not whole or values.dtype.kind != "f" or not np.isfinite(values).all():
        raise UserError(
            f"'{path}' is damaged, or no vector of distances; measure the method again with feature_distance.py."
        )
    checked: Array = values.astype(np.float32, copy=False)
    return checked


def _read_record(path: Path) -> Mapping[str, Any]:
    """Return the record beside the arrays; without one the arrays are drawn all the same."""
    try:
        record = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _dataset(method: Measured) -> str:
    network = method.record.get("network")
    return str(network.get("data", "")) if isinstance(network, dict) else ""


def _chosen(found: list[Measured], config: HistogramConfig) -> list[Measured]:
    if config.data:
        wanted = _plain(config.data)
        left = [method for method in found if _plain(_dataset(method)) == wanted]
        if not left:
            known = sorted({_dataset(method) for method in found} - {""})
            raise UserError(
                f"Nothing was measured on --dataset {config.data}, only on {', '.join(known) or 'unknown data'}."
            )
        found = left
    by_name = {method.name: method for method in found}
    names = [word.strip() for word in config.names.split(",") if word.strip()] or list(by_name)
    for name in names:
        if name not in by_name:
            raise unknown_name("method of --names", name, by_name)
    if len(names) > len(STYLES):
        raise UserError(
            f"{len(names)} methods in one figure cannot be told apart, expected at most "
            f"{len(STYLES)}; choose by --names."
        )
    return [by_name[name] for name in dict.fromkeys(names)]


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _unlike(methods: Sequence[Measured]) -> list[str]:
    """Return a line for each setting in which the methods were not measured alike."""
    lines = []
    settings = [method.record.get("settings") for method in methods]
    for key in ("strategy", "epsilon", "num_steps", "step_size", "batch_size", "seed"):
        values = {str(entry[key]) for entry in settings if isinstance(entry, dict) and key in entry}
        if len(values) > 1:
            lines.append(f"warning: measured with different {key}: {', '.join(sorted(values))}")
    datasets = {_dataset(method) for method in methods} - {""}
    if len(datasets) > 1:
        lines.append(f"warning: measured on different data: {', '.join(sorted(datasets))}; see --dataset")
    return lines


def _title(quantity: Quantity, methods: Sequence[Measured]) -> str:
    classes = {str(method.record.get("class", "")) for method in methods} - {""}
    told = f", class {classes.pop()}" if len(classes) == 1 else ""
    return f"{quantity.pairs.capitalize()} pairs{told}"
