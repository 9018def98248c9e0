"""The networks that ``draw_attack_cam.py`` shows: from run directories or plain state dicts.

Of a run directory ``best.pt`` is taken, if the run did not select its last network; else the newest checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdro_at.config import GdroConfig
from gdro_at.networks import build_network, check_name
from robust_core.config import config_from_dict
from robust_core.data import DatasetInfo
from robust_core.errors import UserError
from robust_core.models import Network, load_state
from robust_core.models.weights import read_evaluated_state
from robust_core.training import RunDirectory, agreed_setting, run_folder

__all__ = ["Source", "common_data", "common_run", "find_sources", "load_network"]

_KINDS = {"model": str, "data": str, "normalize": bool}
"""What is known of a network: settings of its run, or flags."""


@dataclass(frozen=True)
class Source:
    """A column of the picture: its name, the file of weights, what is known of the network, and its run's images.

    ``config`` is that of a run of ``run_expt.py``, which says more of its images than their name.
    """

    name: str
    weights: Path
    settings: Mapping[str, Any]
    data_dir: str | None
    config: GdroConfig | None = None


def find_sources(places: Sequence[str], given: Mapping[str, Any]) -> list[Source]:
    """Return the networks named as ``NAME=PATH`` or ``PATH`` (then called by the file's or folder's name).

    ``given`` are the flags ``model``, ``data`` and ``normalize`` that the user gave; they describe plain state dicts,
    and a run that contradicts them is refused.

    Raises:
        UserError: if there are no weights, two columns have one name, or the network is not known.
    """
    found: dict[str, Source] = {}
    for place in places:
        name, sign, path = place.partition("=")
        if not sign or Path(place).expanduser().exists():
            name, path = "", place
        weights, folder = _find_weights(Path(path).expanduser())
        name = name or Path(path).stem
        if name in found:
            raise UserError(
                f"--checkpoints has two columns called '{name}'; give each its own name as NAME=PATH."
            )
        found[name] = _source(name, weights, folder, given)
    return list(found.values())


def common_data(sources: Sequence[Source], otherwise: str) -> str:
    """Return the dataset that all networks were trained on; ``otherwise`` where no run says.

    Raises:
        UserError: if they were trained on different data.
    """
    names = {source.settings["data"]: source.name for source in sources if "data" in source.settings}
    if len(names) > 1:
        told = ", ".join(f"{name} on {data}" for data, name in names.items())
        raise UserError(f"One picture shows the same images to all networks, but {told}; draw them apart.")
    return next(iter(names), otherwise)


def common_run(sources: Sequence[Source]) -> GdroConfig | None:
    """Return the settings of a run of ``run_expt.py`` that say which images to show; None where there is no such run.

    Raises:
        UserError: if two runs had other images.
    """
    names = ("dataset", "shift_type", "target_name", "confounder_names", "root_dir", "data_dir", "metadata")
    found: dict[tuple[object, ...], Source] = {}
    for source in sources:
        if source.config is not None:
            found.setdefault(tuple(getattr(source.config, name) for name in names), source)
    if len(found) > 1:
        told = " and ".join(source.name for source in found.values())
        raise UserError(
            f"One picture shows the same images to all networks, but those of {told} differ; draw them apart."
        )
    return next((source.config for source in found.values()), None)


def load_network(source: Source, info: DatasetInfo) -> Network:
    """Return a column's network with its weights, in evaluation mode, for images of a dataset.

    Raises:
        UserError: if the weights are of another network or class count, or cannot be read.
    """
    normalized = source.settings.get("normalize", False)
    network = build_network(
        source.settings["model"],
        info.num_classes,
        image_size=info.size,
        mean=info.mean if normalized else None,
        std=info.std if normalized else None,
        seed=0,
    )
    load_state(network, read_evaluated_state(source.weights), source=str(source.weights))
    return network.eval()


def _find_weights(path: Path) -> tuple[Path, Path]:
    """Return the file of weights and the folder whose ``config.json`` describes it."""
    if path.is_file():
        return path, run_folder(path)
    if not path.is_dir():
        raise UserError(
            f"--checkpoints names '{path}', which is not there; give a run directory or a state dict."
        )
    run = RunDirectory.open(path)
    if weights := run.chosen_weights() or run.checkpoints.latest_path():
        return weights, path
    raise UserError(
        f"The run directory '{path}' holds neither best.pt nor a checkpoint; let the run come to its first checkpoint, "
        "or name a state dict."
    )


def _source(name: str, weights: Path, folder: Path, given: Mapping[str, Any]) -> Source:
    """Return a column with what the run's ``config.json`` says of the network, else the flags."""
    settings = {key: given[key] for key in _KINDS if key in given}
    run: Mapping[str, Any] = {}
    if (folder / "config.json").is_file():
        run = RunDirectory.open(folder).record["config"]
    config = config_from_dict(GdroConfig, run) if "train_type" in run else None
    if config is not None:
        # follows from --pixels; what was done before the published attack the drawn network does inside
        run = {**run, "normalize": config.normalizes}
    for key, kind in _KINDS.items():
        if key not in run:
            continue
        settings[key] = agreed_setting(folder, key, run[key], kind, given.get(key))
    if "model" not in settings:
        raise UserError(
            f"Nothing beside '{weights}' says which network it is of; name it by --model, e.g. resnet50."
        )
    check_name(settings["model"])
    data_dir = run.get("data_dir")
    return Source(name, weights, settings, data_dir if isinstance(data_dir, str) else None, config)
