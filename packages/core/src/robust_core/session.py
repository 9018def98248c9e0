"""One run from a configuration to a report: data, network, phases, loop, evaluation, gallery, page.

A paper plugs in a :class:`Plan`; nothing here knows which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from robust_core.config import RunConfig
from robust_core.data import ImageSet, steps_per_epoch
from robust_core.errors import RESTORE_OR_ANEW, UserError
from robust_core.models import load_weights
from robust_core.plan import Beginning, Plan, Session
from robust_core.reporting import write_report
from robust_core.run_data import Data, Say, data_record
from robust_core.storage import held, remove_abandoned, write_whole
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

__all__ = ["execute", "resume"]

Config = TypeVar("Config", bound=RunConfig)


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
    if not overwrite:
        RunDirectory.check_free(path)  # before data is loaded
    device = resolve_device("cpu" if config.no_cuda else config.device)
    processes = start_processes(device)
    say = say if processes.is_main else _silent
    data = processes.main_first(lambda: plan.data(config, say))
    config.validate_for(data[0].info)
    epoch_steps = steps_per_epoch(len(data[0]), config.batch_size)
    phases = plan.phases(config, epoch_steps)
    if not phases:
        raise UserError("These settings leave no step to train; give --epochs 1 or more.")
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
    with _holding(path, processes):
        if processes.is_main:
            for note in notes:
                say(note)
            session.run = RunDirectory.create(
                path, record, overwrite=overwrite, published=plan.published_files
            )
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
    with _holding(path, processes):
        data = processes.main_first(lambda: plan.data(config, say))
        for split, now in data_record(data).items():
            before = stored_data.get(split)
            if before != now:
                raise UserError(
                    f"The {split} data of {path} has changed (was {before}, is {now}); restore it, or start a new run."
                )
        phases = plan.phases(config, steps_per_epoch(len(data[0]), config.batch_size))
        model = plan.network(config, data[0].info, fresh=run.checkpoints.latest_step() == 0)
        return _carry_out(_session(config, run, machine, processes, data, phases, model, say), plan)


@contextmanager
def _holding(path: Path, processes: Processes) -> Iterator[None]:
    """Hold the run directory, if this is the first process, and tidy it up."""
    if not processes.is_main:
        yield
        return
    with held(path):
        remove_abandoned(path)
        yield


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
        settings=_loop_settings(config),
        machine=machine,
        run=run,
        processes=session.processes,
        hooks=_hooks(config, plan, run, session.validation_set, machine),
        validation=session.validation_set,
        say=session.say,
    )
    training.fit()
    if session.processes.is_main:
        evaluated = training.evaluated_model.eval()
        if config.selects_best:
            _load_best(evaluated, run.path / "best.pt")
        result = plan.conclude(replace(session, model=evaluated))
        report = write_report(run.path)
        run.finish(result)
        session.say(f"report: {report}")
    # no barrier: the other processes have nothing left to do, and a long evaluation would time it out
    session.processes.stop()
    return run


def _load_best(model: nn.Module, file: Path) -> None:
    try:
        load_weights(model, file)
    except UserError as error:
        problem = str(error).partition("; ")[0]  # its remedy is for files from elsewhere
        raise UserError(
            f"The best weights of the run cannot be loaded ({problem}); {RESTORE_OR_ANEW}"
        ) from error


def _loop_settings(config: RunConfig) -> LoopSettings:
    return LoopSettings(
        seed=config.seed,
        batch_size=config.batch_size,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        accumulate=config.accumulate,
        ema_decay=config.ema or None,
        sync_bn=config.sync_bn,
        log_interval=config.log_interval,
        checkpoint_every=config.checkpoint_every,
        selection="best" if config.selects_best else "last",
        balance_groups=config.balances_groups,
    )


def _hooks(
    config: Config, plan: Plan[Config], run: RunDirectory, validation: ImageSet | None, machine: Machine
) -> Hooks:
    scalar = _tensorboard(run.path) if config.tensorboard else None
    export = plan.export(config, run.path)
    if validation is None or not config.evaluates_epochs:
        return Hooks(export=export, scalar=scalar)
    return Hooks(
        evaluate=lambda model: plan.validate(config, model, validation, machine),
        export=export,
        scalar=scalar,
        score=config.selection_score,
    )


def _tensorboard(path: Path) -> Callable[[str, float, int], None]:
    """Return what writes a figure of a step; the first one opens the file, so only where figures are logged."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "--tensorboard needs the package tensorboard; install it with the extra of that name, "
            "e.g. pip install 'packages/part[tensorboard]'."
        ) from None
    writer = None

    def scalar(name: str, value: float, step: int) -> None:
        nonlocal writer
        if writer is None:  # a run that goes on from a checkpoint takes back what it wrote beyond
            writer = SummaryWriter(str(path / "tensorboard"), purge_step=step)
        writer.add_scalar(name, value, step)
        writer.flush()

    return scalar
