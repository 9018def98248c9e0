"""Several processes under ``torchrun``: one global batch, one set of gradients, no wrapper around the model.

Plain all-reduces keep the state dict names, accept parameters that take no part in the loss, and give the
gradient of the mean over the *global* batch even where the local batches differ by one image.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = [
    "Processes",
    "from_main",
    "gather_rows",
    "start_processes",
    "sum_figures",
    "sum_gradients",
    "synchronise_buffers",
]

Result = TypeVar("Result")
PATIENCE = timedelta(hours=12)
"""How long the other processes wait while the first one evaluates."""


class Processes:
    """Rank and number of the processes that train one model (1 without ``torchrun``).

    ``copies`` is how many of them have the same rows of the batch at hand: 1, or all of them (:meth:`on_batch`).
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank = rank
        self.world_size = world_size
        self.copies = 1

    def on_batch(self, size: int) -> Processes:
        """Return these processes at work on a global batch of ``size`` images.

        One of fewer images than processes goes whole to each (``randomness.rows_of_rank``): what is summed over the
        processes must then count it once.
        """
        found = copy.copy(self)
        found.copies = 1 if size >= self.world_size else self.world_size
        return found

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run directory."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()

    def main_first(self, action: Callable[[], Result]) -> Result:
        """Do ``action`` in the first process, then in the others, which find what it downloaded."""
        if not self.is_main:
            self.barrier()
        result = action()
        if self.is_main:
            self.barrier()
        return result

    def stop(self) -> None:
        """Leave the process group, if there is one."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def start_processes(device: str) -> Processes:
    """Join the process group that ``torchrun`` announces in the environment (gloo on CPU, nccl on CUDA)."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return Processes()
    if not dist.is_initialized():
        if torch.device(device).type == "cuda":
            torch.cuda.set_device(torch.device(device))
            dist.init_process_group("nccl", timeout=PATIENCE)
        else:
            dist.init_process_group("gloo", timeout=PATIENCE)
    return Processes(dist.get_rank(), world_size)


def _reduce_flat(tensors: list[Tensor]) -> None:
    """Sum the tensors over all processes, in one message."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()


def sum_gradients(parameters: Iterable[nn.Parameter], processes: Processes) -> None:
    """Sum the gradients over the processes; parameters without a gradient on every rank stay without.

    The caller scales its loss by local size / global size, so the sum is the gradient of the global mean.
    """
    if processes.world_size == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        _reduce_flat(gradients)


def synchronise_buffers(model: nn.Module, processes: Processes) -> None:
    """Replace floating-point buffers (running statistics) by their mean over the processes."""
    if processes.world_size == 1:
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if buffers:
        _reduce_flat(buffers)
        for buffer in buffers:
            buffer.div_(processes.world_size)


def sum_figures(figures: dict[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """Return scalars summed over the processes, in one message."""
    if processes.world_size == 1:
        return figures
    names = sorted(figures)
    values = torch.stack([figures[name].float() for name in names])
    dist.all_reduce(values)
    return dict(zip(names, values, strict=True))


def from_main(value: float, device: torch.device | str, processes: Processes) -> float:
    """Return the first process's number on all of them."""
    if processes.world_size == 1:
        return value
    told = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(told, src=0)
    return float(told)


def gather_rows(rows: Tensor, processes: Processes) -> Tensor:
    """Return the rows ``(n_r, ...)`` of all processes, rank after rank, on every process; copies once."""
    if processes.world_size == 1 or processes.copies > 1:
        return rows
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(processes.world_size)]
    dist.all_gather(sizes, torch.tensor([rows.shape[0]], device=rows.device))
    longest = int(max(size.item() for size in sizes))
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: rows.shape[0]] = rows
    pieces = [torch.empty_like(padded) for _ in range(processes.world_size)]
    dist.all_gather(pieces, padded)
    return torch.cat([piece[: int(size.item())] for piece, size in zip(pieces, sizes, strict=True)])
