"""One run from a configuration to a report: data, network, phases, loop, evaluation, gallery, page.

A paper plugs in a :class:`Plan`; nothing here knows which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from robust_core.config import RunConfig
from robust_core.data import DatasetInfo, ImageSet, steps_per_epoch
from robust_core.errors import RESTORE_OR_ANEW, UserError
from robust_core.evaluation import Evaluation, evaluate, load_evaluation, protocol
from robust_core.evaluation import Protocol as Attacks
from robust_core.gallery import save_gallery
from robust_core.models import build_model, load_weights
from robust_core.reporting import write_report
from robust_core.run_data import Data, data_record, load_data
from robust_core.storage import write_whole
from robust_core.training import (
    Hooks,
    LoopSettings,
    Machine,
    Phase,
    Processes,
    RunDirectory,
    Training,
    resolve_machine,
    start_processes,
)
from robust_core.training.machine import describe_software, resolve_device, resumed_machine

__all__ = ["Beginning", "Plan", "Session", "core_network", "execute", "resume"]

Config = TypeVar("Config", bound=RunConfig)
Say = Callable[[str], None]


class Plan(Protocol[Config]):
    """What a paper adds to a run."""

    def phases(self, config: Config, epoch_steps: int) -> list[Phase]:
        """Return the phases of the run; ``epoch_steps`` are the steps of one epoch."""
        ...

    def network(self, config: Config, info: DatasetInfo, *, fresh: bool) -> nn.Module:
        """Return the network (:func:`core_network`, or a paper's own); not ``fresh``: a checkpoint will fill it."""
        ...

    def export(self, config: Config, folder: Path) -> Callable[[Phase, int, nn.Module], None]:
        """Return what is called after each whole epoch of a phase, to write files of published names."""
        ...

    def conclude(self, session: Session[Config]) -> dict[str, Any]:
        """Evaluate the trained network and return what ``finished.json`` holds."""
        ...


class Beginning(Generic[Config]):
    """A plan cut after its first ``count`` phases: trains what several runs share, and evaluates nothing."""

    def __init__(self, plan: Plan[Config], count: int) -> None:
        self.plan = plan
        self.count = count

    def phases(self, config: Config, epoch_steps: int) -> list[Phase]:
        """Return the first phases."""
        return self.plan.phases(config, epoch_steps)[: self.count]

    def network(self, config: Config, info: DatasetInfo, *, fresh: bool) -> nn.Module:
        """Return the plan's own."""
        return self.plan.network(config, info, fresh=fresh)

    def export(self, config: Config, folder: Path) -> Callable[[Phase, int, nn.Module], None]:
        """Return the plan's own."""
        return self.plan.export(config, folder)

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

    def evaluate(self, attacks: Attacks) -> Evaluation:
        """Return the evaluation of the network on the test images, from the run directory if it is there whole."""
        folder = self.run.path / "evaluation"
        manifest = folder / f"{attacks.name}.json"
        if manifest.exists():
            try:
                return load_evaluation(folder, attacks.name)
            except UserError:
                self.say(
                    f"warning: {manifest} or its arrays are missing or damaged; the evaluation is made again"
                )
        limit = self.config.test_images or None
        result = evaluate(
            self.model.eval(),
            self.test_set,
            attacks,
            seed=self.config.seed,
            limit=limit,
            device=self.machine.device,
            batch_size=self.config.evaluation_batch_size,
        )
        result.save(folder, attacks.name)
        return result

    def save_gallery(
        self, attacks: Attacks, masks: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    ) -> None:
        """Write ``gallery.npz``: the first test images, one of each class, attacked by the first member."""
        save_gallery(self.run.path, self.model, self.test_set, attacks, seed=self.config.seed, masks=masks)


def execute(
    config: Config,
    plan: Plan[Config],
    path: Path,
    *,
    overwrite: bool = False,
    fork_from: Path | None = None,
    say: Say = print,
) -> RunDirectory:
    """Train, evaluate and report one run in the new directory ``path``; returns it, finished.

    ``fork_from``: a run whose phases are the beginning of this one's; what it trained is taken over instead of
    trained again, to the same bits.

    Raises:
        UserError: for settings that cannot work, data that is not there, a directory that holds a run.
    """
    config.validate()
    if (path / "config.json").exists() and not overwrite:
        RunDirectory.create(path, {})  # refuses, before data is loaded
    device = resolve_device("cpu" if config.no_cuda else config.device)
    processes = start_processes(device)
    say = say if processes.is_main else _silent
    data = processes.main_first(lambda: load_data(config, say))
    config.validate_for(data[0].info)
    epoch_steps = steps_per_epoch(len(data[0]), config.batch_size)
    phases = plan.phases(config, epoch_steps)
    # compiled or not as the runs that go on from here, which are only then equal to the bit
    whole: Plan[Config] = plan.plan if isinstance(plan, Beginning) else plan
    machine, notes = resolve_machine(
        device=device,
        threads=config.threads or None,
        precision=config.precision,
        train_precision=config.train_precision,
        compile={"auto": None, "on": True, "off": False}[config.compile],
        total_steps=sum(phase.steps for phase in whole.phases(config, epoch_steps)),
    )
    record = {
        "config": config.to_dict(),
        "machine": machine.to_dict(),
        "software": describe_software(),
        "data": data_record(data),
        "phases": [{"name": phase.name, "steps": phase.steps} for phase in phases],
    }
    model = plan.network(config, data[0].info, fresh=True)
    session = _session(config, RunDirectory(path, record), machine, processes, data, phases, model, say)
    if processes.is_main:
        for note in notes:
            say(note)
        session.run = RunDirectory.create(path, record, overwrite=overwrite)
        if fork_from is not None:
            _fork(fork_from, session.run)
    processes.barrier()
    return _carry_out(session, plan)


def resume(config: Config, plan: Plan[Config], path: Path, *, say: Say = print) -> RunDirectory:
    """Continue the run at ``path`` from its newest checkpoint to the same bits; a finished run is left as it is.

    Raises:
        UserError: if there is no run, its record or its checkpoints are damaged, or its data is not what it was.
    """
    run = RunDirectory.open(path)
    if run.is_finished:
        say(f"{path} is finished; nothing to do.")
        return run
    try:
        config.validate()
    except UserError as error:
        reason = str(error).removesuffix(".")
        raise UserError(
            f"The settings in '{path / 'config.json'}' cannot work ({reason}); {RESTORE_OR_ANEW}"
        ) from None
    stored_data = run.record.get("data")
    if not isinstance(stored_data, dict):
        raise UserError(f'The run\'s config.json has no settings under "data"; {RESTORE_OR_ANEW}')
    machine, notes = resumed_machine(run.record.get("machine"))
    processes = start_processes(machine.device)
    say = say if processes.is_main else _silent
    for note in notes:
        say(note)
    data = processes.main_first(lambda: load_data(config, say))
    for split, now in data_record(data).items():
        before = stored_data.get(split)
        if before != now:
            raise UserError(
                f"The {split} data of {path} has changed (was {before}, is {now}); restore it, or start a new run."
            )
    phases = plan.phases(config, steps_per_epoch(len(data[0]), config.batch_size))
    model = plan.network(config, data[0].info, fresh=run.checkpoints.latest_step() == 0)
    return _carry_out(_session(config, run, machine, processes, data, phases, model, say), plan)


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


def _silent(_: str) -> None:
    return None


def _fork(source: Path, target: RunDirectory) -> None:
    """Copy metrics, timings, best weights and the newest checkpoint of ``source`` into a new run.

    The checkpoint comes last: a run that was killed before it starts from step 0 and cuts the lines back.
    """
    donor = RunDirectory.open(source)
    state = donor.checkpoints.latest()
    step = state.get("step") if isinstance(state, dict) else None
    if state is None or type(step) is not int:
        raise UserError(f"'{source}' has no checkpoint to start from; train it first.")
    for line in donor.metrics():
        target.log(line)
    for line in donor.timings():
        target.log_timing(line)
    best = source / "best.pt"
    if best.exists():
        write_whole(target.path / "best.pt", best.read_bytes())
    target.checkpoints.save(state, step)


def _session(
    config: Config,
    run: RunDirectory,
    machine: Machine,
    processes: Processes,
    data: Data,
    phases: list[Phase],
    model: nn.Module,
    say: Say,
) -> Session[Config]:
    train_set, validation_set, test_set = data
    return Session(
        config=config,
        machine=machine,
        processes=processes,
        run=run,
        model=model,
        train_set=train_set,
        validation_set=test_set if config.selects_on_test else validation_set,
        test_set=test_set,
        phases=phases,
        say=say,
    )


def _carry_out(session: Session[Config], plan: Plan[Config]) -> RunDirectory:
    """Train from the newest checkpoint; the first process evaluates and reports."""
    config, machine, run = session.config, session.machine, session.run
    torch.set_num_threads(machine.threads)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    training = Training(
        model=session.model,
        data=session.train_set,
        phases=session.phases,
        settings=_loop_settings(config, session.train_set),
        machine=machine,
        run=run,
        processes=session.processes,
        hooks=_hooks(config, plan, run, session.validation_set, machine),
        say=session.say,
    )
    training.fit()
    if session.processes.is_main:
        evaluated = training.evaluated_model.eval()
        if config.selection == "best":
            load_weights(evaluated, run.path / "best.pt")
        run.finish(plan.conclude(replace(session, model=evaluated)))
        session.say(f"report: {write_report(run.path)}")
    # no barrier: the other processes have nothing left to do, and a long evaluation would time it out
    session.processes.stop()
    return run


def _loop_settings(config: RunConfig, data: ImageSet) -> LoopSettings:
    return LoopSettings(
        seed=config.seed,
        batch_size=config.batch_size,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        augment=data.info.crop_padding > 0 or data.info.flip,
        accumulate=config.accumulate,
        ema_decay=config.ema or None,
        sync_bn=config.sync_bn,
        log_interval=config.log_interval,
        checkpoint_every=config.checkpoint_every,
        selection=config.selection,
    )


def _hooks(
    config: Config, plan: Plan[Config], run: RunDirectory, validation: ImageSet | None, machine: Machine
) -> Hooks:
    scalar = _tensorboard(run.path) if config.tensorboard else None
    export = plan.export(config, run.path)
    if validation is None or (config.curve_images == 0 and config.selection != "best"):
        return Hooks(export=export, scalar=scalar)
    limit = None if config.selection == "best" else config.curve_images

    def figures(model: nn.Module) -> dict[str, float]:
        attacks = protocol("pgd-20", eps=config.epsilon, step_size=config.step_size)
        summary = evaluate(
            model,
            validation,
            attacks,
            seed=config.seed,
            limit=limit,
            device=machine.device,
            batch_size=config.evaluation_batch_size,
        )
        return {
            "natural_accuracy": float(summary.natural.mean()),
            "pgd20_accuracy": float(summary.last["pgd-20"].mean()),
        }

    return Hooks(evaluate=figures, export=export, scalar=scalar)


def _tensorboard(path: Path) -> Callable[[str, float, int], None]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "--tensorboard needs the package tensorboard; install it with the extra of that name, "
            "e.g. pip install 'packages/part[tensorboard]'."
        ) from None
    writer = SummaryWriter(str(path / "tensorboard"))

    def scalar(name: str, value: float, step: int) -> None:
        writer.add_scalar(name, value, step)
        writer.flush()

    return scalar
