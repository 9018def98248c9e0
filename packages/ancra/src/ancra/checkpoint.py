"""The network that an evaluation script looks at: from a run directory or a state dict, with its test images.

Of a directory these are tried, the first that is there is taken: what a run of ours chose by its ``config.json``
(``--selection last``: its newest checkpoint, of which the average of the weights if there is one; otherwise
``best.pt``), then ``best_adv_model.pt``, ``model-120.pt``, ``model_120.pth``, ``model-wrn-last.pt``, ``last_state.pt``,
``last_state.zip``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ancra.attention import ATTENTIONS
from ancra.config import AncraConfig
from ancra.networks import build_network
from ancra.plan import ancra_method
from ancra.scripts import canonical
from robust_core.config import expect, option, option_names
from robust_core.data import DatasetInfo, ImageSet, load_dataset
from robust_core.errors import UserError
from robust_core.models import Network, check_model_name, load_state
from robust_core.models.resnet import ResNet
from robust_core.models.weights import read_evaluated_state
from robust_core.training import RunDirectory, agreed_setting, run_folder
from robust_core.training.machine import resolve_device

__all__ = [
    "WEIGHT_FILES",
    "Subject",
    "SubjectConfig",
    "find_weights",
    "load_sources",
    "load_subject",
    "training_images",
]

Say = Callable[[str], None]

WEIGHT_FILES = (
    "best_adv_model.pt",
    "model-120.pt",
    "model_120.pth",
    "model-wrn-last.pt",
    "last_state.pt",
    "last_state.zip",
)
"""Published names of weights, in the order in which they are looked for."""

# What a run decides once and for all, and what it means where a run of another package does not say.
_DECIDED: Mapping[str, Any] = {"model": None, "data": None, "attention": "none", "normalize": False}
_FLAGS = {"data": "dataset"}
_GROUP = "network and images"


@dataclass(frozen=True, kw_only=True)
class SubjectConfig:
    """Which network, on which images, where; a run's ``config.json`` decides what it knows."""

    model: str = option("resnet18", "network by name (of a run: its own)", group=_GROUP)
    data: str = option(
        "cifar10",
        "cifar10, cifar100, svhn, tiny-imagenet or shapes (of a run: its own)",
        flags=("--dataset",),
        group=_GROUP,
    )
    attention: str = option(
        "reverse",
        "attention of the network (of a run: its own)",
        choices=(*ATTENTIONS, "none"),
        group=_GROUP,
    )
    normalize: bool = option(False, "the network normalises its images (of a run: as there)", group=_GROUP)
    num_classes: int = option(0, "classes of the network (0: those of the dataset)", group=_GROUP)
    data_dir: str = option("data", "the dataset's folder or its parent (of a run: its own)", group=_GROUP)
    test_images: int = option(0, "the first N test images (0: all; of a run: as there)", group=_GROUP)

    seed: int = option(1, "seed of everything random")
    device: str = option("auto", "cpu, cuda, cuda:N or auto")
    no_cuda: bool = option(False, "stay on the CPU")
    threads: int = option(0, "CPU threads (0: torch's choice)")

    def validate(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            UserError: naming the flag, its value and what is expected.
        """
        check_model_name(self.model)
        canonical({"data": self.data})
        for name in ("num_classes", "test_images", "threads"):
            expect(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        expect(self.threads <= 1024, "threads", self.threads, "at most 1024")
        # what numpy takes, which the figures' projection draws from
        expect(0 <= self.seed < 2**32, "seed", self.seed, "0 to 2^32 - 1")


@dataclass(frozen=True)
class Subject:
    """A network in evaluation mode on ``device``, its test images (on the CPU) and where it comes from.

    ``folder`` is where results go; ``name`` how tables call the method; ``settings`` are the model, data,
    attention and normalisation; ``run`` the configuration of the run, empty for a bare state dict.
    """

    network: Network
    images: ImageSet
    weights: Path
    folder: Path
    name: str
    settings: Mapping[str, Any]
    run: Mapping[str, Any]
    device: torch.device

    @property
    def found(self) -> dict[str, Any]:
        """What the run or the files decided, for logs."""
        return {**self.settings, "weights": str(self.weights), "test_images": len(self.images)}


def load_subject(
    place: str, config: SubjectConfig, given: Mapping[str, Any], *, flag: str, say: Say = print
) -> Subject:
    """Return the network at ``place``, a run directory or a file, and its test images.

    ``given`` are the settings that the user gave: one that contradicts the run is refused. ``flag`` is what named
    the place; ``say`` is told which weights were taken.

    Raises:
        UserError: if there are no weights, they do not fit the network, or the data is not there.
    """
    weights, folder, run = find_weights(place, flag=flag, say=say)
    if not os.access(folder, os.W_OK):
        raise UserError(
            f"'{folder}' cannot be written, but the results belong there; copy the run to where it can."
        )
    settings = _settings(config, given, run, folder)
    device = torch.device(resolve_device("cpu" if config.no_cuda else config.device))
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.backends.cudnn.deterministic = True
    images = _test_images(config, given, run, settings["data"], say)
    info = images.info
    if config.num_classes not in (0, info.num_classes):
        raise UserError(
            f"--num-classes {config.num_classes} contradicts {info.name}, which has {info.num_classes}; leave it out, "
            "or name the dataset that the network was trained on."
        )
    network = _network(settings, info, read_evaluated_state(weights), weights)
    name = _method_name(run) if run else ("plain" if settings["attention"] == "none" else "ANCRA")
    return Subject(network.to(device), images, weights, folder, name, settings, run, device)


def find_weights(place: str, *, flag: str, say: Say = print) -> tuple[Path, Path, Mapping[str, Any]]:
    """Return the file of weights, the folder that it belongs to and the configuration of the run there, if any.

    Raises:
        UserError: if nothing is there, or a run's ``config.json`` cannot be read.
    """
    path = Path(place).expanduser()
    if path.is_file():
        folder = run_folder(path)
        say(f"weights: {path}")
        run = _run(folder)
        return path, folder, run.record["config"] if run else {}
    if not path.is_dir():
        raise UserError(f"{flag} names '{place}', which is not there; give a run directory or a state dict.")
    run = _run(path)
    config = run.record["config"] if run else {}
    if run and (chosen := run.chosen_weights()):
        say(f"weights: {chosen} (--selection {config.get('selection', 'best')})")
        return chosen, path, config
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            say(f"weights: {path / name}")
            return path / name, path, config
    raise UserError(
        f"The directory '{place}' ({flag}) holds no weights; expected one of best.pt, {', '.join(WEIGHT_FILES)} or "
        "the checkpoints of a run in it, or name a state dict."
    )


def _run(folder: Path) -> RunDirectory | None:
    return RunDirectory.open(folder) if (folder / "config.json").exists() else None


def _settings(
    config: SubjectConfig, given: Mapping[str, Any], run: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Return what is known of the network: the run's word, else the flags'."""
    values = {name: getattr(config, name) for name in _DECIDED}
    values.update(canonical({"data": values["data"]}))
    if not run:
        return values
    for name, otherwise in _DECIDED.items():
        stored = run.get(name, otherwise)
        wanted = values[name] if name in given else None
        values[name] = agreed_setting(
            folder, name, stored, type(values[name]), wanted, _FLAGS.get(name, name)
        )
    return values


def _test_images(
    config: SubjectConfig, given: Mapping[str, Any], run: Mapping[str, Any], name: str, say: Say
) -> ImageSet:
    """Return the first test images, all unless the flags or else the run say so."""
    folder, limit = config.data_dir, config.test_images
    if "data_dir" not in given and isinstance(run.get("data_dir"), str):
        folder = run["data_dir"]
    if "test_images" not in given and isinstance(run.get("test_images"), int):
        limit = run["test_images"]
    images = load_dataset(name, folder, "test", log=say)
    for note in images.notes:
        say(note)
    if 0 < limit < len(images):
        say(f"the first {limit:,} of {len(images):,} test images")
        images = images.subset(torch.arange(limit))
    return images


def training_images(
    subject: Subject, config: SubjectConfig, given: Mapping[str, Any], *, say: Say = print
) -> ImageSet | None:
    """Return the training images of the network's dataset, or None, with a line that says why."""
    folder = config.data_dir
    if "data_dir" not in given and isinstance(subject.run.get("data_dir"), str):
        folder = subject.run["data_dir"]
    try:
        return load_dataset(subject.settings["data"], folder, "train", log=say)
    except UserError as error:
        say(f"warning: no training images: {error}")
        return None


def load_sources(places: str, like: Subject, *, say: Say = print) -> dict[str, Network]:
    """Return the networks at ``places`` (with commas between) to transfer from, by the names of their folders or files.

    A bare state dict is of the network ``like``, with or without its attention: of a ResNet the classifier's name
    tells, of the other families only that the blocks have classifiers of their own.

    Raises:
        UserError: if there are no weights, they do not fit or do not tell their attention, or they were trained on
            other data.
    """
    words = list(dict.fromkeys(word.strip() for word in places.split(",") if word.strip()))
    # the last parts of the paths, as many as tell them apart
    depths = (["/".join(Path(word).parts[-depth:]) for word in words] for depth in range(1, 20))
    keys = next((names for names in depths if len(set(names)) == len(names)), words)
    return {key: load_source(word, like, say=say) for key, word in zip(keys, words, strict=True)}


def load_source(place: str, like: Subject, *, say: Say = print) -> Network:
    """Return the network at one place, as :func:`load_sources` does."""
    weights, _, run = find_weights(place, flag="--transfer-from", say=say)
    state = read_evaluated_state(weights)
    if run and run.get("data") != like.settings["data"]:
        raise UserError(
            f"--transfer-from {place} was trained on {run.get('data')}, this network on {like.settings['data']}; name "
            "networks of the same data."
        )
    if run:
        settings = {name: run.get(name, other) for name, other in _DECIDED.items()}
    else:
        settings = {**like.settings, "attention": _bare_attention(state, like, weights)}
    return _network(settings, like.images.info, state, weights).to(like.device)


def _bare_attention(state: Mapping[str, Tensor], like: Subject, weights: Path) -> str:
    """Return the attention of a state dict without a run, as its names tell; refuse where they do not."""
    if any(name.startswith("attention_classifiers.") for name in state):
        return "own"
    if not isinstance(like.network, ResNet):
        raise UserError(
            f"'{weights}' has no config.json of a run beside it, and the names in a {like.settings['model']} do not "
            "tell whether it has reverse attention; name its run directory."
        )
    return "none" if "linear.weight" in state else str(like.settings["attention"])


def _network(
    settings: Mapping[str, Any], info: DatasetInfo, state: Mapping[str, Tensor], weights: Path
) -> Network:
    """Return the network that the settings describe, with these weights, in evaluation mode."""
    network = build_network(
        settings["model"],
        info.num_classes,
        attention=settings["attention"],
        image_size=info.size,
        mean=info.mean if settings["normalize"] else None,
        std=info.std if settings["normalize"] else None,
        seed=0,
    )
    _check_names(network, state, settings["attention"], weights)
    load_state(network, state, source=str(weights))
    return network.eval()


def _check_names(network: Network, state: Mapping[str, Tensor], attention: str, weights: Path) -> None:
    """Refuse a ResNet's weights for one of another kind: with attention the classifier is ``fc``, else ``linear``."""
    if not isinstance(network, ResNet):
        return
    attends = any(name.startswith("fc.") for name in state)
    plain = any(name.startswith("linear.") for name in state)
    if attention == "none" and attends:
        raise UserError(
            f"'{weights}' is of a network with reverse attention (its classifier is named fc), but the network asked "
            "for has none; leave --attention none out, or name the weights of a plain network."
        )
    if attention != "none" and plain:
        raise UserError(
            f"'{weights}' is of a network without reverse attention (its classifier is named linear), but --attention "
            f"is {attention}; give --attention none to look at a plain network."
        )


def _method_name(run: Mapping[str, Any]) -> str:
    """Return how the run calls its method, also for runs of another version or package."""
    known = {name: value for name, value in run.items() if name in option_names(AncraConfig)}
    try:
        return ancra_method(AncraConfig(**{"attention": "none", "contrast": False, **known}), 2).name
    except (TypeError, AttributeError, KeyError):
        return str(run.get("method", "unnamed")).upper()
