"""``draw_attack_cam.py``: where attacks act in images, of several networks side by side; see ``--help``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gdro_at.config import PUBLISHED_EPS, GdroConfig
from gdro_at.data import load_groups
from gdro_at.drawn_networks import Source, common_data, common_run, find_sources, load_network
from gdro_at.overlays import SALIENCIES, draw_overlays
from robust_core.cli import Parser, add_flags, guarded, normalise_flags
from robust_core.config import expect, option
from robust_core.data import ImageSet, load_dataset
from robust_core.training.machine import resolve_device

__all__ = ["DrawConfig", "chosen_rows", "draw_overlays", "main"]

EPILOG = """
Example: draw_attack_cam.py --checkpoints ERM=runs/erm GDRO-AT=runs/gdro --layer layer3 --eps 8/255.
A run directory knows its network and its data; a plain state dict needs --model and --data, or, for images that
run_expt.py reads, the flags there:
run_expt.py --zennit-show -d CelebA -t Blond_Hair -c Male --model NAME --checkpoints A=FILE.
"""


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """Settings of the picture; what a run's ``config.json`` says of its network it says itself."""

    model: str = option("", "network of a plain state dict, by name (of a run: its own)", group="networks")
    normalize: bool = option(
        False, "the network normalises with the dataset's mean and std (of a run: as there)", group="networks"
    )
    layer: str = option(
        "layer1", "layer that is looked at: layer2, layer2_1, layer3_0_conv1, ...", group="picture"
    )
    saliency: str = option("class", "attacked maps", choices=SALIENCIES, group="picture")
    eps: float = option(
        PUBLISHED_EPS, "budget of the attack", flags=("--epsilon",), kind="fraction", group="picture"
    )
    steps: int = option(10, "steps of the attack", flags=("--num-steps",), group="picture")
    images: int = option(8, "images, as many of each group (or class) as possible", group="picture")
    out: str = option("attack_cam.png", "file of the picture, .png or .pdf", group="picture")
    data: str = option(
        "shapes-grouped", "dataset by name (of a run: its own)", flags=("--dataset",), group="data"
    )
    data_dir: str | None = option(
        None, "the dataset's folder or its parent (of a run: its own)", group="data"
    )
    split: str = option("test", "split of the images", choices=("train", "validation", "test"), group="data")
    seed: int = option(0, "seed of the attack's start")
    device: str = option("auto", "cpu, cuda, cuda:N or auto")

    def validate(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            UserError: naming the flag, its value and what is expected.
        """
        expect(1 <= self.images <= 64, "images", self.images, "1 to 64")
        expect(1 <= self.steps <= 10_000, "steps", self.steps, "1 to 10000")
        expect(0.0 <= self.eps <= 1.0, "eps", self.eps, "between 0 and 1, in pixels of [0, 1], e.g. 8/255")
        expect(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2^63 - 1")
        suffix = Path(self.out).suffix
        expect(suffix in (".png", ".pdf"), "out", self.out, "a file that ends in .png or .pdf")


def chosen_rows(data: ImageSet, count: int) -> tuple[torch.Tensor, list[str]]:
    """Return positions of ``count`` images and what their rows are called: the next of each group (else class) in turn.

    The rows are ordered by group, then by position.
    """
    units = data.labels if data.groups is None else data.groups
    names = data.info.classes if data.groups is None or data.info.groups is None else data.info.groups
    turns: list[tuple[int, int, int]] = []
    seen: dict[int, int] = {}
    for position, unit in enumerate(units.tolist()):
        turns.append((seen.get(unit, 0), unit, position))
        seen[unit] = seen.get(unit, 0) + 1
    taken = sorted(sorted(turns)[:count], key=lambda entry: (entry[1], entry[2]))
    return torch.tensor([position for _, _, position in taken]), [names[unit] for _, unit, _ in taken]


def _images(config: DrawConfig, sources: Sequence[Source], experiment: GdroConfig | None) -> ImageSet:
    """Return the split to show: that of the experiment, of the networks' runs, or the one that the flags name."""
    run = common_run(sources) if experiment is None else experiment
    if run is not None:
        train, validation, test = load_groups(run, print)
        found = {"train": train, "validation": validation, "test": test}[config.split]
        assert found is not None  # data with groups always has all three
        return found
    name = common_data(sources, config.data)
    folder = config.data_dir or next((source.data_dir for source in sources if source.data_dir), None)
    return load_dataset(name, folder, config.split, log=print)


def run(
    config: DrawConfig,
    given: Mapping[str, Any],
    places: Sequence[str],
    experiment: GdroConfig | None = None,
) -> None:
    """Draw the picture and print its path; ``experiment`` are settings of ``run_expt.py`` that say which images.

    Raises:
        UserError: for checkpoints that cannot be shown, data that is not there, or a file that cannot be written.
    """
    config.validate()
    sources = find_sources(places, given)
    data = _images(config, sources, experiment)
    positions, names = chosen_rows(data, config.images)
    device = resolve_device(config.device)
    shown = data.subset(positions).to(device)
    columns = {source.name: load_network(source, data.info).to(device) for source in sources}
    path = draw_overlays(
        columns,
        shown.pixels(slice(None)),
        shown.labels,
        layer=config.layer,
        path=Path(config.out).expanduser(),
        eps=config.eps,
        steps=config.steps,
        saliency=config.saliency,
        seed=config.seed,
        rows=names,
        classes=data.info.classes,
    )
    print(f"figure: {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``draw_attack_cam.py``; returns the exit code."""
    parser = Parser(
        prog="draw_attack_cam.py",
        description="Draw natural and attack saliency of several networks side by side.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "--checkpoints",
        nargs="+",
        required=True,
        metavar="NAME=PATH",
        help="run directories or state dicts, one per column",
    )
    add_flags(parser, DrawConfig)
    given = vars(parser.parse_args(normalise_flags(sys.argv[1:] if arguments is None else arguments)))
    places = given.pop("checkpoints")
    return guarded(lambda: run(DrawConfig(**given), given, places), "the same command begins anew")


if __name__ == "__main__":
    sys.exit(main())
