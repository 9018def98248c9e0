"""The contract between a paper and the loop: a loss for a batch, a refresh at epoch start, its own state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from robust_core.data import Batch, ImageSet
from robust_core.models import FrozenView
from robust_core.models.frozen import cast_outputs
from robust_core.randomness import generator_for
from robust_core.training.distributed import Processes
from robust_core.training.schedules import Rate

__all__ = ["Method", "Phase", "StepContext", "StepResult", "micro_batches"]


class StepResult(NamedTuple):
    """The loss of a batch (scalar, mean over its images) and figures to log (scalars, detached)."""

    loss: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class StepContext:
    """Where in the run a step stands, the network to attack, and randomness for exactly this step.

    ``rows`` are the rows of the global batch (of ``global_size`` images) that the given batch holds; all of them in
    each of the ``processes`` if there are fewer images than processes (``processes.copies``).
    ``validation`` are the validation images, if any, for methods that weigh by what they see there.
    """

    seed: int
    epoch: int
    step: int
    phase_step: int
    phase_steps: int
    view: FrozenView
    rows: tuple[int, int]
    global_size: int
    train_dtype: torch.dtype = torch.float32
    processes: Processes = field(default_factory=Processes)
    validation: ImageSet | None = None

    @property
    def progress(self) -> float:
        """Share of the phase that is done after this step, in (0, 1]."""
        return (self.phase_step + 1) / self.phase_steps

    def uniform(self, purpose: str, like: Tensor) -> Tensor:
        """Return numbers in [0, 1) shaped as ``like`` ``(n, ...)``: this batch's rows of a global draw."""
        generator = generator_for(self.seed, purpose, self.epoch, self.step, device=like.device)
        shape = (self.global_size, *like.shape[1:])
        draw = torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype)
        return draw[self.rows[0] : self.rows[1]]

    def normal(self, purpose: str, like: Tensor) -> Tensor:
        """Return standard normal numbers shaped as ``like``: this batch's rows of a global draw."""
        generator = generator_for(self.seed, purpose, self.epoch, self.step, device=like.device)
        shape = (self.global_size, *like.shape[1:])
        draw = torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
        return draw[self.rows[0] : self.rows[1]]

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the training logits ``(n, K)`` of the live model, in float32 whatever it trains in."""
        return cast(Tensor, self.call(model, images))

    def call(self, model: nn.Module, images: Tensor, **arguments: Any) -> Any:
        """Return what the live model gives with further arguments, its tensors in float32 like :meth:`logits`."""
        if self.train_dtype == torch.float32:
            return model(images, **arguments)
        with torch.autocast(images.device.type, dtype=self.train_dtype):
            found = model(images, **arguments)
        return cast_outputs(found, torch.float32)


class Method(ABC):
    """What a paper adds to the loop: a loss; everything else does nothing unless a method has its own.

    ``averaged`` is the network that is evaluated, selected and saved instead of the live one, or None;
    ``rate_factor`` multiplies the phase's learning rate; ``watched`` names the validation figure that
    :meth:`validated` is told; ``fresh_optimizer`` lets the method's phase begin without the momentum of what came
    before.
    """

    name: str
    averaged: nn.Module | None = None
    rate_factor: float = 1.0
    watched: str | None = None
    fresh_optimizer: bool = False

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> StepResult:
        """Return the loss of one batch on the live model, which is in training mode."""

    def begin_epoch(self, data: ImageSet, context: StepContext) -> Mapping[str, float]:
        """Refresh what is kept per epoch (masks), when an epoch or the phase begins; returns figures to log."""
        del data, context
        return {}

    def end_epoch(self, model: nn.Module, context: StepContext) -> Mapping[str, float]:
        """Act on the epoch that has ended, before it is evaluated; returns figures to log."""
        del model, context
        return {}

    def validated(self, figure: float) -> None:
        """Take notice of the figure ``watched`` of the validation at the epoch's end."""
        del figure

    def records(self) -> list[dict[str, Any]]:
        """Return the lines for ``metrics.jsonl`` that have come up since the last call."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        del state

    def attach(self, model: nn.Module) -> None:
        """Make ``averaged`` anew behind :meth:`load_state_dict`: a copy of the live ``model`` with what was saved."""
        del model


@dataclass(frozen=True)
class Phase:
    """A stretch of a run under one method and one rate."""

    name: str
    method: Method
    steps: int
    rate: Rate

    @property
    def key(self) -> str:
        """All that decides the phase's steps, given what came before.

        Runs that agree in data, network, seed and optimizer and whose phases have equal keys up to some point are
        equal to the bit up to that point, so rows of a table share what they have in common.
        """
        return f"{self.name} {self.method!r} {self.steps} {self.rate!r}"


def micro_batches(batch: Batch, context: StepContext, count: int) -> list[tuple[Batch, StepContext]]:
    """Cut a batch into ``count`` pieces for gradient accumulation, each with its rows of the global batch.

    Fewer pieces where a process has fewer images; all processes make equally many, as synchronised batch norm
    needs.
    """
    pieces = []
    total = len(batch)
    smallest = batch.global_size // context.processes.world_size or batch.global_size
    count = min(count, smallest)
    for index in range(count):
        low, high = total * index // count, total * (index + 1) // count
        piece = replace(
            batch,
            images=batch.images[low:high],
            labels=batch.labels[low:high],
            indices=batch.indices[low:high],
            groups=None if batch.groups is None else batch.groups[low:high],
            offsets=None if batch.offsets is None else batch.offsets[low:high],
            flips=None if batch.flips is None else batch.flips[low:high],
            boxes=None if batch.boxes is None else batch.boxes[low:high],
        )
        start = context.rows[0]
        pieces.append((piece, replace(context, rows=(start + low, start + high))))
    return pieces
