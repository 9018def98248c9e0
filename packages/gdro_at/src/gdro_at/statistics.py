"""The running statistics of a training log, as the official code keeps them, and the text and CSV that show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from gdro_at.units import UnitMeans
from gdro_at.weights.state import RuleState
from robust_core.errors import UserError

__all__ = ["Statistics", "csv_columns", "csv_row", "get_stats", "log_text", "model_norm_sq"]

_PER_GROUP = (
    "avg_loss_group",
    "exp_avg_loss_group",
    "avg_acc_group",
    "processed_data_count_group",
    "update_data_count_group",
    "update_batch_count_group",
)
_OVERALL = ("avg_actual_loss", "avg_per_sample_loss", "avg_acc")
_MODEL = ("model_norm_sq", "reg_loss")


@dataclass(frozen=True)
class Statistics:
    """Sums and means since the last reset (golden README, part 1, "Statistics").

    Per unit ``(K,)``: ``processed`` samples P, samples and batches with positive weight (``updated_data``,
    ``updated_batches``), mean ``loss`` and ``accuracy``. Scalars: mean ``actual`` loss over the ``batches``.
    """

    processed: Tensor
    updated_data: Tensor
    updated_batches: Tensor
    loss: Tensor
    accuracy: Tensor
    actual: Tensor
    batches: Tensor

    @staticmethod
    def start(
        units: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Statistics:
        """Return the statistics of no batch; a reset is a new start."""
        rows = [torch.zeros(units, dtype=dtype, device=device) for _ in range(5)]
        scalars = [torch.zeros((), dtype=dtype, device=device) for _ in range(2)]
        return Statistics(*rows, *scalars)

    @torch.no_grad()
    def updated(
        self, losses: UnitMeans, accuracy: Tensor, weights: Tensor | None, actual: Tensor
    ) -> Statistics:
        """Return the statistics with one more global batch.

        ``losses``: unit means as the rule used them (with its shift, where it has one); ``accuracy`` ``(K,)``: unit
        means of hits; ``weights`` ``(K,)``: those of the natural loss, None where it is a plain mean; ``actual``: the
        natural part of the loss, a scalar.
        """
        counts = losses.counts
        total = (self.processed + counts).clamp(min=1)
        old, new = self.processed / total, counts / total
        weighted = torch.ones_like(counts) if weights is None else weights
        batches = self.batches + 1
        return Statistics(
            processed=self.processed + counts,
            updated_data=self.updated_data + counts * (weighted > 0),
            updated_batches=self.updated_batches + (counts * weighted > 0),
            loss=old * self.loss + new * losses.means,
            accuracy=old * self.accuracy + new * accuracy,
            actual=self.batches / batches * self.actual + actual / batches,
            batches=batches,
        )

    @property
    def average_loss(self) -> Tensor:
        """Mean loss per sample, a scalar; 0 before the first batch."""
        return (self.processed * self.loss).sum() / self.processed.sum().clamp(min=1)

    @property
    def average_accuracy(self) -> Tensor:
        """Share of samples classified right, a scalar; 0 before the first batch."""
        return (self.processed * self.accuracy).sum() / self.processed.sum().clamp(min=1)

    def to_dict(self) -> dict[str, Tensor]:
        """Return the tensors by field name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def from_dict(
        tensors: Mapping[str, Tensor], units: int, device: torch.device | str = "cpu"
    ) -> Statistics:
        """Return the statistics that ``to_dict`` gave, on a device; refuse those of another number of units."""
        shapes = {name: tuple(tensor.shape) for name, tensor in Statistics.start(units).to_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != shapes:
            raise UserError(
                f"The saved statistics have the shapes {found}, expected {shapes}; resume with the data and the "
                "version that the run began with."
            )
        return Statistics(**{name: tensors[name].to(device) for name in shapes})


def get_stats(statistics: Statistics, average: Tensor) -> dict[str, float]:
    """Return the logged values by their published names, in the published order.

    ``average`` ``(K,)`` is the exponential average of the group losses (``RuleState.average``), which no reset clears.
    """
    rows = (
        statistics.loss,
        average,
        statistics.accuracy,
        statistics.processed,
        statistics.updated_data,
        statistics.updated_batches,
    )
    stats = {}
    for unit, values in enumerate(torch.stack(rows, dim=1).tolist()):
        stats.update({f"{name}:{unit}": value for name, value in zip(_PER_GROUP, values, strict=True)})
    overall = torch.stack([statistics.actual, statistics.average_loss, statistics.average_accuracy]).tolist()
    stats.update(zip(_OVERALL, overall, strict=True))
    return stats


def csv_columns(units: int) -> list[str]:
    """Return the header of the published CSV logs."""
    per_group = [f"{name}:{unit}" for unit in range(units) for name in _PER_GROUP]
    return ["epoch", "batch", *per_group, *_OVERALL, *_MODEL]


def model_norm_sq(parameters: Iterable[Tensor]) -> float:
    """Return the sum of the squared L2 norms of all parameters."""
    return float(sum(parameter.detach().norm() ** 2 for parameter in parameters))


def csv_row(
    epoch: int, batch: int, statistics: Statistics, average: Tensor, *, norm_sq: float, weight_decay: float
) -> dict[str, float]:
    """Return one row of the CSV log, in the order of ``csv_columns``; ``reg_loss`` is ``weight_decay / 2 norm_sq``."""
    stats = get_stats(statistics, average)
    regularisation = {"model_norm_sq": norm_sq, "reg_loss": weight_decay / 2 * norm_sq}
    return {"epoch": epoch, "batch": batch, **stats, **regularisation}


def log_text(statistics: Statistics, state: RuleState, adjusted: Tensor, names: Sequence[str]) -> str:
    """Return the published text block: mean loss, accuracy, and a line per group with its weights.

    ``adjusted`` ``(K,)`` is ``E + C / sqrt(n)``, i.e. ``state.average + constants(...).reference``; ``names`` are the
    groups' names. "adv prob" is q and "trades prob" is p.
    """
    columns = (
        statistics.processed,
        statistics.loss,
        state.average,
        adjusted,
        state.natural_weights,
        state.adversarial_weights,
        statistics.accuracy,
    )
    text = (
        f"Average incurred loss: {float(statistics.average_loss):.3f}  \n"
        f"Average acc: {float(statistics.average_accuracy):.3f}  \n"
    )
    for name, values in zip(names, torch.stack(columns, dim=1).tolist(), strict=True):
        count, loss, average, reference, natural, adversarial, accuracy = values
        text += (
            f"  {name}  [n = {int(count)}]:\tloss = {loss:.3f}  exp loss = {average:.3f}  "
            f"adjusted loss = {reference:.3f}  adv prob = {natural:3f}   trades prob = {adversarial:3f}   "
            f"acc = {accuracy:.3f}\n"
        )
    return text
