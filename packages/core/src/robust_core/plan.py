"""What a paper plugs into a run, and a run in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from robust_core.config import RunConfig
from robust_core.data import DatasetInfo, ImageSet
from robust_core.evaluation import (
    Evaluation,
    Keeper,
    Runner,
    evaluate,
    protocol,
    records_in,
    weights_digest,
)
from robust_core.evaluation import Protocol as Attacks
from robust_core.gallery import save_gallery
from robust_core.models import build_model
from robust_core.run_data import Data, Say, load_data
from robust_core.training import Machine, Phase, Processes, RunDirectory

__all__ = ["Beginning", "Plan", "Session", "core_network"]

Config = TypeVar("Config", bound=RunConfig)


class Plan(Protocol[Config]):
    """What a paper adds to a run; it inherits what it leaves as it is here."""

    def data(self, config: Config, say: Say) -> Data:
        """Return training, validation (or None) and test images."""
        return load_data(config, say)

    def phases(self, config: Config, epoch_steps: int) -> list[Phase]:
        """Return the phases of the run; ``epoch_steps`` are the steps of one epoch."""
        ...

    def network(self, config: Config, info: DatasetInfo, *, fresh: bool) -> nn.Module:
        """Return the network; not ``fresh``: a checkpoint will fill it."""
        del fresh
        return core_network(config, info)

    def validate(
        self, config: Config, model: nn.Module, images: ImageSet, machine: Machine
    ) -> Mapping[str, Any]:
        """Return what is logged of the validation images at an epoch's end: accuracy, natural and under PGD-20."""
        summary = evaluate(
            model,
            images,
            protocol("pgd-20", eps=config.epsilon, step_size=config.step_size),
            seed=config.seed,
            limit=None if config.selects_best else config.curve_images,
            device=machine.device,
            batch_size=config.evaluation_batch_size,
        )
        return {
            "natural_accuracy": float(summary.natural.mean()),
            "pgd20_accuracy": float(summary.last["pgd-20"].mean()),
        }

    def export(self, config: Config, folder: Path) -> Callable[[Phase, int, nn.Module], None]:
        """Return what is called after each whole epoch of a phase, to write files of published names: nothing."""
        del config, folder
        return _no_export

    def published_files(self, settings: Mapping[str, Any]) -> Sequence[str]:
        """Return the patterns of the files that a run with these settings writes beside the core's: none."""
        del settings
        return ()

    def conclude(self, session: Session[Config]) -> dict[str, Any]:
        """Evaluate the trained network and return what ``finished.json`` holds."""
        ...


def _no_export(_phase: Phase, _epoch: int, _model: nn.Module) -> None:
    return None


def core_network(config: RunConfig, info: DatasetInfo) -> nn.Module:
    """Return the core's network of the configured name for this data, normalising first if asked to."""
    return build_model(
        config.model,
        info.num_classes,
        image_size=info.size,
        mean=info.mean if config.normalize else None,
        std=info.std if config.normalize else None,
        seed=config.seed,
    )


class Beginning(Plan[Config]):
    """A plan cut after its first ``count`` phases: trains what several runs share, and evaluates nothing."""

    def __init__(self, plan: Plan[Config], count: int) -> None:
        self.plan = plan
        self.count = count

    def data(self, config: Config, say: Say) -> Data:
        """Return the plan's own."""
        return self.plan.data(config, say)

    def phases(self, config: Config, epoch_steps: int) -> list[Phase]:
        """Return the first phases."""
        return self.plan.phases(config, epoch_steps)[: self.count]

    def network(self, config: Config, info: DatasetInfo, *, fresh: bool) -> nn.Module:
        """Return the plan's own."""
        return self.plan.network(config, info, fresh=fresh)

    def validate(
        self, config: Config, model: nn.Module, images: ImageSet, machine: Machine
    ) -> Mapping[str, Any]:
        """Return the plan's own."""
        return self.plan.validate(config, model, images, machine)

    def export(self, config: Config, folder: Path) -> Callable[[Phase, int, nn.Module], None]:
        """Return the plan's own."""
        return self.plan.export(config, folder)

    def published_files(self, settings: Mapping[str, Any]) -> Sequence[str]:
        """Return the plan's patterns."""
        return self.plan.published_files(settings)

    def conclude(self, session: Session[Config]) -> dict[str, Any]:
        """Return nothing: the runs that go on from here are evaluated at their own ends."""
        del session
        return {}


@dataclass
class Session(Generic[Config]):
    """A run in memory: what was configured, where it computes, what it trains on."""

    config: Config
    machine: Machine
    processes: Processes
    run: RunDirectory
    model: nn.Module
    train_set: ImageSet
    validation_set: ImageSet | None
    test_set: ImageSet
    phases: list[Phase]
    say: Say

    def evaluate(self, attacks: Attacks, *, runners: Mapping[str, Runner] | None = None) -> Evaluation:
        """Return the evaluation of the network on the test images, from the run directory if it is there whole.

        What was stopped, or lacks an attack whose package was missing then, goes on with what it has. ``runners`` adds
        kinds of members.
        """
        folder, limit = self.run.path / "evaluation", self.config.test_images or None
        model, keeper = self.model.eval(), Keeper(folder, attacks.name)
        known = [*keeper.known(self.say), *records_in(folder, self.say, attacks.name)]
        count = min(limit or len(self.test_set), len(self.test_set))
        if known and _is_whole(known[-1], attacks, model, self.config.seed, count):
            return known[-1]
        result = evaluate(
            model,
            self.test_set,
            attacks,
            seed=self.config.seed,
            limit=limit,
            device=self.machine.device,
            batch_size=self.config.evaluation_batch_size,
            runners=runners,
            known=known,
            keep=keeper.keep,
        )
        keeper.finish(result)
        return result

    def save_gallery(
        self, attacks: Attacks, masks: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    ) -> None:
        """Write ``gallery.npz``: the first test images, one of each class, attacked by the first member."""
        save_gallery(self.run.path, self.model, self.test_set, attacks, seed=self.config.seed, masks=masks)


def _is_whole(found: Evaluation, attacks: Attacks, model: nn.Module, seed: int, count: int) -> bool:
    """Return whether every attack was carried out on this very network and these images."""
    return (
        json.dumps(found.protocol.as_json()) == json.dumps(attacks.as_json())
        and (found.weights, found.seed, len(found.labels)) == (weights_digest(model), seed, count)
        and all(run.ran for run in found.runs.values())
    )
