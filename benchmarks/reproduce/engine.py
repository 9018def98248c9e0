"""Runs the rows of a paper at a scale; what several rows begin with is trained once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch

from benchmarks.reproduce.results import Entry, ResultFile
from benchmarks.reproduce.rows import Paper, Row
from benchmarks.reproduce.schedule import Stage
from benchmarks.reproduce.tasks import Inquiry, Task, settings_of
from robust_core.config import RunConfig, flag_of
from robust_core.data import steps_per_epoch
from robust_core.errors import UserError
from robust_core.evaluation import load_evaluation
from robust_core.training import RunDirectory

__all__ = ["Reproduction"]

SHARED = (
    *("data", "data_dir", "train_subset", "validation", "subset_seed", "curve_images", "model", "normalize"),
    *("batch_size", "momentum", "weight_decay", "nesterov", "accumulate", "ema", "epsilon", "step_size"),
    *("seed", "device", "no_cuda", "threads", "precision", "train_precision", "compile", "sync_bn"),
    *("selection", "log_interval", "checkpoint_every"),
)
"""Settings that decide a run's beginning together with its phases' keys."""

_Origin: TypeAlias = tuple[str, int, dict[str, Any]]
"""Row, seed and settings of a run."""


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
        self._told: set[str] = set()

    def stages(self, rows: list[Row], seeds: tuple[int, ...]) -> Iterator[Stage]:
        """Train every row with every seed, but what is finished with the same settings; then examine the runs.

        Raises:
            UserError: for a shared setting that tells rows apart.
        """
        self.check_given()
        yield self._training(rows, seeds)
        if self.paper.examine is not None:
            yield self._examination(rows, seeds)

    def present_results(self) -> ResultFile:
        """Return all results of these settings, earlier ones of other rows and seeds too."""
        same = self.results.only(self._has_present_settings)
        if left_out := len(self.results.entries) - len(same.entries):
            self.say(f"{left_out} results with other settings in {self.results.path} are not in the table")
        return same

    def check_given(self) -> None:
        """Refuse shared settings that tell rows apart, and say which ones every row sets itself.

        Raises:
            UserError: naming the flag and a row.
        """
        for name in self.given:
            flag = flag_of(name)
            if row := self.paper.row_told_by(name):
                raise UserError(
                    f"{flag} is what row '{row.name}' sets itself, so that other rows would be trained under a wrong "
                    "title; leave it out."
                )
            rows = [row for row in self.paper.at(self.scale) if not row.cited]
            if rows and all(name in row.settings for row in rows):
                self.say(f"warning: {flag} has no effect here: every row sets it")

    def _has_present_settings(self, entry: Entry) -> bool:
        rows = [row for row in self.paper.at(self.scale) if row.name == entry.row]
        if not rows:
            return False
        config, _ = self._resolved(rows[0], entry.seed)
        return self.results.has(entry.row, entry.seed, settings_of(config.to_dict()))

    def _training(self, rows: list[Row], seeds: tuple[int, ...]) -> Stage:
        """Return the training of what is not finished; each result is saved at once."""
        tasks: list[Task] = []
        trained: dict[Path, _Origin] = {}
        for seed in seeds:
            pending = {}
            for row in self._of_seed(rows, seed):
                config = self.configure(row, seed)
                settings = settings_of(config.to_dict())
                if not self.force and self.results.has(row.name, seed, settings):
                    self.say(f"{row.title}, seed {seed}: finished before, not run again (--force does)")
                else:
                    pending[row.name] = config
                    trained[Path(config.run_dir)] = (row.name, seed, settings)
            tasks += self._tasks({row.name: row for row in rows}, pending)

        return Stage(tasks, partial(self._keep, trained))

    def _keep(self, origins: Mapping[Path, _Origin], path: Path) -> None:
        """Save the result of the run at ``path``, unless that is a shared beginning, which has none."""
        if path in origins:
            run = RunDirectory.open(path)
            self.results.add(Entry.of_run(*origins[path], run, self.paper.protocol))

    def _tasks(self, rows: Mapping[str, Row], configs: Mapping[str, Any]) -> list[Task]:
        """Return what one seed's rows share, each once and before them, and the rows."""
        beginnings = self._shared_beginnings(configs)
        tasks: dict[Path, Task] = {}
        # rows that share less have more to do: first
        for name in sorted(configs, key=lambda row: len(beginnings[row])):
            donor: Path | None = None
            for phases, key in beginnings[name]:
                path = self.folder / "shared" / key
                title = f"shared beginning {key[:6]}"
                tasks.setdefault(
                    path, Task(self.paper.name, title, configs[name], path, phases, donor, self.force)
                )
                donor = path
            path = Path(configs[name].run_dir)
            tasks[path] = Task(self.paper.name, rows[name].title, configs[name], path, 0, donor, self.force)
        # what others wait for first of all
        return sorted(tasks.values(), key=lambda task: task.phases == 0)

    def _of_seed(self, rows: list[Row], seed: int) -> list[Row]:
        return [row for row in rows if not row.cited and (not row.seeds or seed in row.seeds)]

    def _examination(self, rows: list[Row], seeds: tuple[int, ...]) -> Stage:
        """Return attacks on the trained runs that know their defence; what was examined before is left as it is."""
        runs = self.finished(seeds)
        wanted = {(row.name, seed): row.title for seed in seeds for row in self._of_seed(rows, seed)}
        inquiries: dict[Path, _Origin] = {}
        work = []
        for (name, seed), title in wanted.items():
            entry = self.results.find(name, seed)
            sources = self.paper.sources((name, seed), runs) if self.paper.sources else {}
            # trained since, or anew: the members that transfer from it are others, the rest is taken over
            more = entry is not None and self._changed(sources, entry.examined.get("sources", {}))
            if entry is None or (entry.examined and not more and not self.force):
                continue
            if (name, seed) not in runs:
                self.say(
                    f"{title}, seed {seed}: its run is not there with these settings, so it cannot be examined"
                )
                continue
            path = runs[name, seed]
            threads = int(self.given.get("threads", 0)) or torch.get_num_threads()
            label = f"{title}, seed {seed}"
            work.append(Inquiry(self.paper.name, label, path, tuple(sources.items()), self.scale, threads))
            inquiries[path] = (name, seed, entry.settings)

        return Stage(work, partial(self._keep, inquiries))

    def finished(self, seeds: tuple[int, ...]) -> dict[tuple[str, int], Path]:
        """Return the runs with the present settings that lie finished on disk, by row and seed.

        Of the scale's seeds and these, so that what a run is transferred from does not depend on how seeds were called.
        """
        found = {}
        for seed in sorted({*self.paper.seeds[self.scale], *seeds}):
            for row in self._of_seed(self.paper.at(self.scale), seed):
                path = self._place(row, seed)
                if not (path / "finished.json").exists():
                    continue
                wanted = json.loads(json.dumps(self._resolved(row, seed)[0].to_dict()))
                if settings_of(RunDirectory.open(path).record["config"]) == settings_of(wanted):
                    found[row.name, seed] = path
        return found

    def _changed(self, sources: Mapping[str, Path], before: Mapping[str, str]) -> bool:
        """Return whether networks to transfer from are other ones than when a run was examined."""
        now = {
            name: load_evaluation(path / "evaluation", self.paper.protocol).weights
            for name, path in sources.items()
        }
        return any(before.get(name) != weights for name, weights in now.items())

    def configure(self, row: Row, seed: int) -> Any:
        """Return a row's configuration: the scale's defaults, the row's settings, the user's flags."""
        config, notes = self._resolved(row, seed)
        for note in notes:
            if note not in self._told:
                self.say(note)
        self._told.update(notes)
        return config

    def _resolved(self, row: Row, seed: int) -> tuple[Any, list[str]]:
        values = {**self.given, **row.settings, "scale": self.scale, "seed": seed}
        values["run_dir"] = str(self._place(row, seed))
        return self.paper.resolve(values)

    def _place(self, row: Row, seed: int) -> Path:
        return self.folder / f"{row.name}-seed{seed}"

    def _epoch_steps(self, config: RunConfig) -> int:
        """Return the steps of one epoch, which the lengths of phases depend on."""
        count = config.train_subset
        if not count:
            if config.data not in self._train_images:
                self._train_images[config.data] = len(self.paper.plan.data(config, self.say)[0])
            count = self._train_images[config.data]
        return steps_per_epoch(count, config.batch_size)

    def _keys(self, config: RunConfig) -> list[str]:
        """Return one key per phase, which covers everything up to its end."""
        names = (*SHARED, *self.paper.network_settings)
        digest = hashlib.sha256(json.dumps([getattr(config, name) for name in names]).encode("utf8"))
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
