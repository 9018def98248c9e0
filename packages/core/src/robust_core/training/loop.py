"""The training loop: phases of a method, one batch at a time, resumable at every checkpoint to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from robust_core.data import Batch, ImageSet, batches, steps_per_epoch
from robust_core.data.sampling import balanced_order
from robust_core.errors import UserError
from robust_core.models import FrozenView
from robust_core.models.weights import load_state
from robust_core.randomness import rows_of_rank
from robust_core.storage import write_tensors
from robust_core.training.averaging import WeightAverage
from robust_core.training.clock import Clock
from robust_core.training.distributed import (
    Processes,
    from_main,
    sum_figures,
    sum_gradients,
    synchronise_buffers,
)
from robust_core.training.guards import check_optimizer, refuse_infinite
from robust_core.training.machine import Machine
from robust_core.training.method import Phase, StepContext, StepResult, micro_batches
from robust_core.training.progress import Progress
from robust_core.training.rundir import RunDirectory
from robust_core.training.sync_norm import count_copies_once, synchronise_batch_norm

__all__ = ["Hooks", "LoopSettings", "Training"]

# What a checkpoint holds.
STATE = ("step", "model", "optimizer", "average", "method", "best_score")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class LoopSettings:
    """What the loop itself needs to know; everything else belongs to methods and phases.

    ``checkpoint_every`` counts steps (0: once per epoch). ``selection`` is ``last`` or ``best`` (highest
    ``score`` returned by the epoch evaluation; its weights go to ``best.pt``). ``balance_groups`` draws each epoch's
    images with replacement, every group alike.
    """

    seed: int = 1
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 2e-4
    nesterov: bool = False
    accumulate: int = 1
    ema_decay: float | None = None
    sync_bn: bool = False
    log_interval: int = 100
    checkpoint_every: int = 0
    selection: str = "last"
    balance_groups: bool = False


def _no_evaluation(_: nn.Module) -> dict[str, float]:
    return {}


def _no_export(_phase: Phase, _epoch: int, _model: nn.Module) -> None:
    return None


@dataclass(frozen=True)
class Hooks:
    """What a caller may add: figures at each epoch's end, files to write after an epoch of a phase."""

    evaluate: Callable[[nn.Module], Mapping[str, Any]] = _no_evaluation
    export: Callable[[Phase, int, nn.Module], None] = _no_export
    scalar: Callable[[str, float, int], None] | None = None
    score: str = "pgd20_accuracy"


@dataclass
class Training:
    """One run of the loop. :meth:`fit` trains from the newest checkpoint (or step 0) to the end."""

    model: nn.Module
    data: ImageSet
    phases: Sequence[Phase]
    settings: LoopSettings
    machine: Machine
    run: RunDirectory
    processes: Processes = field(default_factory=Processes)
    hooks: Hooks = field(default_factory=Hooks)
    validation: ImageSet | None = None
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        if self.settings.sync_bn and self.processes.world_size > 1:
            synchronise_batch_norm(self.model)
        # measured on a CPU: a training step takes 0.75 of the time, and folding the view's weights a quarter
        self.model.to(torch.device(self.machine.device))
        self.model.to(memory_format=torch.channels_last)
        self.data = self.data.to(self.machine.device)
        if self.validation is not None:
            self.validation = self.validation.to(self.machine.device)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=self.phases[0].rate.lr,
            momentum=self.settings.momentum,
            weight_decay=self.settings.weight_decay,
            nesterov=self.settings.nesterov,
        )
        decay = self.settings.ema_decay
        self.average = None if decay is None else WeightAverage(self.model, decay)
        self.view = FrozenView(self.model, dtype=DTYPES[self.machine.precision], compile=self.machine.compile)
        self.epoch_steps = steps_per_epoch(len(self.data), self.settings.batch_size)
        self.total_steps = sum(phase.steps for phase in self.phases)
        self.best_score = float("-inf")

    @property
    def evaluated_model(self) -> nn.Module:
        """The network that is evaluated and exported: an average of the weights if one is kept."""
        averaged = self.phases[-1].method.averaged
        if averaged is not None:
            return averaged
        return self.model if self.average is None else self.average.model

    def fit(self) -> None:
        """Train to the end, from the newest checkpoint if there is one.

        Raises:
            UserError: if the loss is not finite; names the step and the last good checkpoint.
        """
        step = self.restore()
        quiet = not self.processes.is_main
        progress = Progress(self.total_steps, step, self.run.path.name, say=self.say, quiet=quiet)
        clock = Clock(step)
        try:
            while step < self.total_steps:
                epoch, position = divmod(step, self.epoch_steps)
                for batch in self._batches(epoch, position):
                    if step >= self.total_steps:
                        break
                    figures = self._step(batch, step, epoch)
                    step += 1
                    progress.advance()
                    self._after_step(step, epoch, figures, progress, clock)
        finally:
            progress.close()

    def _batches(self, epoch: int, position: int) -> Any:
        order = None
        if self.settings.balance_groups and self.data.groups is not None:
            order = balanced_order(self.data.groups, self.settings.seed, epoch)
        return batches(
            self.data,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed,
            epoch=epoch,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
            start=position,
            order=order,
        )

    def phase_of(self, step: int) -> tuple[int, int]:
        """Return (index of the phase, step within it) of a step of the run."""
        for index, phase in enumerate(self.phases):
            if step < phase.steps:
                return index, step
            step -= phase.steps
        return len(self.phases) - 1, self.phases[-1].steps + step

    def _context(self, step: int, epoch: int, rows: tuple[int, int], global_size: int) -> StepContext:
        index, phase_step = self.phase_of(step)
        return StepContext(
            seed=self.settings.seed,
            epoch=epoch,
            step=step,
            phase_step=phase_step,
            phase_steps=self.phases[index].steps,
            view=self.view,
            rows=rows,
            global_size=global_size,
            train_dtype=DTYPES[self.machine.train_precision],
            processes=self.processes,
            validation=self.validation,
        )

    def _step(self, batch: Batch, step: int, epoch: int) -> dict[str, Tensor]:
        """Take one step on a batch; returns the global means of what is to be logged."""
        index, phase_step = self.phase_of(step)
        phase = self.phases[index]
        if phase_step == 0:
            self._begin_phase(phase)
        size, world = batch.global_size, self.processes.world_size
        context = self._context(step, epoch, rows_of_rank(size, self.processes.rank, world), size)
        self.view.refresh()
        if phase_step == 0 or step % self.epoch_steps == 0:
            refreshed = phase.method.begin_epoch(self.data, context)
            if refreshed and self.processes.is_main:
                self.run.log({"kind": "refresh", "step": step + 1, "epoch": epoch, **refreshed})
        context = replace(context, processes=self.processes.on_batch(size))
        count_copies_once(self.model, context.processes.copies)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for piece, piece_context in micro_batches(batch, context, self.settings.accumulate):
            result = phase.method.loss(self.model, piece, piece_context)
            share = len(piece) / (size * context.processes.copies)
            torch.autograd.backward(result.loss * share)
            _add(sums, result, share)
        sum_gradients(self.model.parameters(), self.processes)
        figures = sum_figures(sums, self.processes)
        refuse_infinite(figures["loss"], self.model, step, self.run)
        rate = phase.rate.at(phase_step, phase.steps, self.epoch_steps) * phase.method.rate_factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if not self.settings.sync_bn:
            synchronise_buffers(self.model, self.processes)
        if self.average is not None:
            self.average.update(self.model)
        return figures

    def _begin_phase(self, phase: Phase) -> None:
        """Seek the best among the networks of one phase; forget the momentum where the method wants it."""
        self.best_score = float("-inf")
        if phase.method.fresh_optimizer:
            self.optimizer.state.clear()

    def _after_step(
        self, step: int, epoch: int, figures: dict[str, Tensor], progress: Progress, clock: Clock
    ) -> None:
        """Log, evaluate, export and save after ``step`` steps are done."""
        index, phase_step = self.phase_of(step - 1)
        phase = self.phases[index]
        phase_ends = phase_step + 1 == phase.steps
        # a phase's end counts as an epoch's, so that a run that shares a beginning has the same lines
        epoch_ends = step % self.epoch_steps == 0 or phase_ends
        if step % self.settings.log_interval == 0 or epoch_ends:
            self._log_step(step, epoch, phase, figures, progress)
            timing = clock.line(step, self.settings.batch_size, self.machine.device)
            if timing is not None and self.processes.is_main:
                self.run.log_timing(timing)
        if epoch_ends:
            self._end_epoch(step, epoch, phase, progress)
        self._log_records(phase.method.records(), step, epoch)
        if (phase_step + 1) % self.epoch_steps == 0 and self.processes.is_main:
            self.hooks.export(phase, (phase_step + 1) // self.epoch_steps, self.evaluated_model)
        every = self.settings.checkpoint_every
        due = epoch_ends if every == 0 else step % every == 0
        if due or phase_ends:
            self.save(step)
        if epoch_ends:
            clock.leave_out()

    def _log_step(
        self, step: int, epoch: int, phase: Phase, figures: dict[str, Tensor], progress: Progress
    ) -> None:
        if not self.processes.is_main:
            return
        values = {name: value.item() for name, value in figures.items()}
        rate = self.optimizer.param_groups[0]["lr"]
        self.run.log(
            {"kind": "step", "step": step, "epoch": epoch, "phase": phase.name, "lr": rate, **values}
        )
        told = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        progress.line(f"step {step}/{self.total_steps}  {phase.name}  {told}")
        if self.hooks.scalar is not None:
            for name, value in values.items():
                self.hooks.scalar(f"train/{name}", value, step)

    def _log_records(self, records: list[dict[str, Any]], step: int, epoch: int) -> None:
        if self.processes.is_main:
            for record in records:
                self.run.log({"step": step, "epoch": epoch, **record})

    def _end_epoch(self, step: int, epoch: int, phase: Phase, progress: Progress) -> None:
        """Let the method end the epoch, evaluate, and tell the method what it watches."""
        method = phase.method
        self.view.refresh()
        size = self.settings.batch_size
        rows = rows_of_rank(size, self.processes.rank, self.processes.world_size)
        ended = method.end_epoch(self.model, self._context(step - 1, epoch, rows, size))
        self._log_records([{"kind": "refresh", **ended}] if ended else [], step, epoch)
        figures = self._validate(step, epoch, phase, progress) if self.processes.is_main else {}
        if method.watched is not None:
            watched = from_main(figures.get(method.watched, math.nan), self.machine.device, self.processes)
            if not math.isnan(watched):  # without validation there is nothing to tell
                method.validated(watched)

    def _validate(self, step: int, epoch: int, phase: Phase, progress: Progress) -> dict[str, Any]:
        """Evaluate, log and select; returns the figures."""
        figures = dict(self.hooks.evaluate(self.evaluated_model.eval()))
        if not figures:
            return figures
        self.run.log({"kind": "epoch", "step": step, "epoch": epoch, "phase": phase.name, **figures})
        numbers = {name: value for name, value in figures.items() if isinstance(value, float)}
        told = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items() if ":" not in name)
        progress.line(f"epoch {epoch + 1} ends  {told}")
        if self.hooks.scalar is not None:
            for name, value in numbers.items():
                self.hooks.scalar(f"validation/{name}", value, step)
        if self.settings.selection == "best" and figures[self.hooks.score] > self.best_score:
            self.best_score = figures[self.hooks.score]
            write_tensors(self.run.path / "best.pt", self.evaluated_model.state_dict())
        return figures

    def save(self, step: int) -> None:
        """Write the state after ``step`` steps."""
        if not self.processes.is_main:
            return
        index, phase_step = self.phase_of(step - 1)
        # the last phase's method is kept beyond its end: an average of it is what the run evaluates
        inside = phase_step + 1 < self.phases[index].steps or index + 1 == len(self.phases)
        self.run.settle()
        self.run.checkpoints.save(
            {
                "step": step,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "method": self.phases[index].method.state_dict() if inside else {},
                "best_score": self.best_score,
            },
            step,
        )

    def restore(self) -> int:
        """Take up the newest checkpoint; returns the number of steps that are done (0 without one).

        Raises:
            UserError: if no checkpoint is whole, the newest is not of this run, or a line of the metrics is damaged.
        """
        state = self.run.checkpoints.latest(self.machine.device, say=self.say)
        step = 0 if state is None else self._take_over(state)
        if self.processes.is_main:
            self.run.cut_back(step)
        return step

    def _take_over(self, state: Any) -> int:
        """Load what :meth:`save` wrote; returns its step. Anything else, under a right checksum, is refused."""
        source = f"The newest checkpoint in '{self.run.checkpoints.folder}'"
        remedy = "restore the checkpoints of this run, or start it anew in another --run-dir."
        if not isinstance(state, dict):
            raise UserError(f"{source} is no checkpoint of a run; {remedy}")
        if lacking := [name for name in STATE if name not in state]:
            raise UserError(f"{source} lacks {', '.join(lacking)}; {remedy}")
        step = state["step"]
        if type(step) is not int or not 0 < step <= self.total_steps:
            raise UserError(
                f"{source} is of step {step!r}, but this run has {self.total_steps} steps; {remedy}"
            )
        load_state(self.model, state["model"], source)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            check_optimizer(self.optimizer)
            if self.average is not None and state["average"] is not None:
                load_state(self.average.model, state["average"]["weights"], source)
                self.average.load_state_dict(state["average"])
            self.best_score = float(state["best_score"])
            index, phase_step = self.phase_of(step)
            if phase_step > 0 and state["method"]:
                method = self.phases[index].method
                method.load_state_dict(state["method"])
                method.attach(self.model)
        except (UserError, torch.OutOfMemoryError):
            raise
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"{source} does not fit this run ({type(error).__name__}: {error}); {remedy}"
            ) from error
        return step


def _add(sums: dict[str, Tensor], result: StepResult, share: float) -> None:
    for name, value in {"loss": result.loss, **result.metrics}.items():
        sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach() * share
