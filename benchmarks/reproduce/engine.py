"""Runs the rows of a paper at a scale; what several rows begin with is trained once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.reproduce.results import Entry, ResultFile
from benchmarks.reproduce.rows import Paper, Row
from robust_core.config import RunConfig
from robust_core.data import load_dataset, steps_per_epoch
from robust_core.session import Beginning, Plan, execute, resume
from robust_core.training import RunDirectory

__all__ = ["Reproduction"]

SHARED = (
    *("data", "data_dir", "train_subset", "validation", "subset_seed", "curve_images", "model", "normalize"),
    *("batch_size", "momentum", "weight_decay", "nesterov", "accumulate", "ema", "epsilon", "step_size"),
    *("seed", "device", "no_cuda", "threads", "precision", "train_precision", "compile", "sync_bn"),
    *("log_interval", "checkpoint_every"),
)
"""Settings that decide a run's beginning together with its phases' keys."""


@dataclass
class Reproduction:
    """One paper at one scale: where its runs and results lie, and how far it is."""

    paper: Paper
    scale: str
    folder: Path
    given: Mapping[str, Any]
    force: bool = False
    results_path: Path | None = None
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        self.results = ResultFile(
            self.results_path or self.folder / "results.json", self.paper.name, self.scale
        )
        self._train_images: dict[str, int] = {}

    def run(self, rows: list[Row], seeds: tuple[int, ...]) -> ResultFile:
        """Run every row with every seed, but what is finished with the same settings; returns all results."""
        for seed in seeds:
            configs = {row.name: self.configure(row, seed) for row in rows}
            beginnings = self._shared_beginnings(configs)
            for row in rows:
                config = configs[row.name]
                if not self.force and self.results.has(row.name, seed, settings_of(config)):
                    self.say(f"{row.title}, seed {seed}: finished before, not run again (--force does)")
                    continue
                self.say(f"== {row.title}, seed {seed} ==")
                run = self._run_row(row, config, beginnings[row.name])
                self.results.add(Entry.of_run(row.name, seed, settings_of(config), run, self.paper.protocol))
        return self.results

    def configure(self, row: Row, seed: int) -> Any:
        """Return a row's configuration: the scale's defaults, the row's settings, the user's flags."""
        values = {**self.given, **row.settings, "scale": self.scale, "seed": seed}
        values["run_dir"] = str(self.folder / f"{row.name}-seed{seed}")
        config, notes = self.paper.resolve(values)
        for note in notes:
            self.say(note)
        return config

    def _epoch_steps(self, config: RunConfig) -> int:
        """Return the steps of one epoch, which the lengths of phases depend on."""
        count = config.train_subset
        if not count:
            if config.data not in self._train_images:
                self._train_images[config.data] = len(
                    load_dataset(config.data, config.data_dir, "train", log=self.say)
                )
            count = self._train_images[config.data] - config.validation
        return steps_per_epoch(count, config.batch_size)

    def _keys(self, config: RunConfig) -> list[str]:
        """Return one key per phase, which covers everything up to its end."""
        digest = hashlib.sha256(json.dumps([getattr(config, name) for name in SHARED]).encode("utf8"))
        keys = []
        for phase in self.paper.plan.phases(config, self._epoch_steps(config)):
            digest.update(phase.key.encode("utf8"))
            keys.append(digest.hexdigest()[:16])
        return keys

    def _shared_beginnings(self, configs: Mapping[str, RunConfig]) -> dict[str, list[tuple[int, str]]]:
        """Return per row the beginnings shared with another row: (number of phases, key), shortest first."""
        keys = {name: self._keys(config) for name, config in configs.items()}
        every = [key for own in keys.values() for key in own[:-1]]
        return {
            name: [(count + 1, key) for count, key in enumerate(own[:-1]) if every.count(key) > 1]
            for name, own in keys.items()
        }

    def _run_row(self, row: Row, config: Any, beginnings: list[tuple[int, str]]) -> RunDirectory:
        donor: Path | None = None
        for count, key in beginnings:
            path = self.folder / "shared" / key
            self._carry_out(
                config, Beginning(self.paper.plan, count), path, donor, title=f"shared beginning {key[:6]}"
            )
            donor = path
        return self._carry_out(config, self.paper.plan, Path(config.run_dir), donor, title=row.title)

    def _carry_out(
        self, config: Any, plan: Plan[Any], path: Path, donor: Path | None, *, title: str
    ) -> RunDirectory:
        """Begin a run, continue it, or take it as it is if it is finished with the same settings."""
        if (path / "config.json").exists():
            present = RunDirectory.open(path)
            same = present.record["config"] == json.loads(json.dumps(config.to_dict())) or donor_is_shared(
                path
            )
            if same and not (self.force and not donor_is_shared(path)):
                return resume(config, plan, path, say=self._quietly(title))
        return execute(config, plan, path, overwrite=True, fork_from=donor, say=self._quietly(title))

    def _quietly(self, title: str) -> Callable[[str], None]:
        def say(text: str) -> None:
            self.say(f"[{title}] {text}")

        return say


def donor_is_shared(path: Path) -> bool:
    """Return whether a run directory is a shared beginning: its name is its key."""
    return path.parent.name == "shared"


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return the settings that decide a result: all but places and the machine's."""
    places = (
        "run_dir",
        "data_dir",
        "device",
        "no_cuda",
        "threads",
        "tensorboard",
        "log_interval",
        "checkpoint_every",
    )
    return {name: value for name, value in config.to_dict().items() if name not in places}
