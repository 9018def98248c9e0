"""Means over groups (or classes) of the global batch, and the weighted sum of such means as a local loss.

A *unit* is whatever the weights run over: a group, or a class. ``n`` is the number of images of this process, ``K`` the
number of units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from robust_core.training.distributed import Processes

__all__ = ["UnitMeans", "sum_over_processes", "unit_means", "unit_totals", "weighted_sum"]


class UnitMeans(NamedTuple):
    """``means`` ``(K,)`` over the members of each unit, 0 for an absent one; ``counts`` ``(K,)`` of members."""

    means: Tensor
    counts: Tensor


def sum_over_processes(totals: Tensor, processes: Processes | None) -> None:
    """Replace what this process found in its rows of a batch by the sum over all processes, each row counted once.

    Where all have the same rows, those of the first process are taken for the batch: on every process to the bit.
    """
    if processes is None or processes.world_size == 1:
        return
    if processes.copies > 1:
        dist.broadcast(totals, src=0)
    else:
        dist.all_reduce(totals)


def unit_totals(
    values: Sequence[Tensor], units: Tensor, count: int, processes: Processes | None = None
) -> tuple[Tensor, Tensor]:
    """Return sums ``(T, K)`` and member counts ``(K,)`` of the global batch, detached, after one all-reduce.

    ``values`` are ``T`` tensors ``(n,)`` (losses, hits), ``units`` int64 ``(n,)`` in ``0 ... count - 1``. The result is
    at least float32, whatever the precision of the values.
    """
    ones = torch.ones(units.shape, dtype=torch.float32, device=units.device)
    dtype = torch.float32
    for value in values:
        dtype = torch.promote_types(dtype, value.dtype)
    rows = torch.stack([value.detach().to(dtype) for value in (*values, ones)])
    # A masked sum, not scatter_add: the same bits on every run, also on a GPU. where, not a product with the mask:
    # an infinite loss spoils the sum of its own unit only.
    members = units[:, None] == torch.arange(count, device=units.device)
    totals = torch.where(members, rows[:, :, None], 0).sum(dim=1)
    sum_over_processes(totals, processes)
    return totals[:-1], totals[-1]


def unit_means(
    values: Sequence[Tensor], units: Tensor, count: int, processes: Processes | None = None
) -> list[UnitMeans]:
    """Return the means of each of the ``values`` ``(n,)`` over the global batch; they share one all-reduce."""
    sums, counts = unit_totals(values, units, count, processes)
    return [UnitMeans(row, counts) for row in sums / counts.clamp(min=1)]


def weighted_sum(values: Tensor, units: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Return ``sum_i w_{u(i)} v_i / counts_{u(i)}`` (scalar), with gradient through the values only.

    With ``counts`` ``(K,)`` of the global batch this is the local part of ``sum_k w_k L_k``, ``L_k`` the unit means:
    the sum of it over the processes is that loss (their mean, where all have the same rows).
    """
    shares = (weights / counts.clamp(min=1)).detach()
    return (shares[units] * values).sum()
