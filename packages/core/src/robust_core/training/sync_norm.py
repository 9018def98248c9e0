"""Batch norm over the global batch of several processes, by all-reduce (torch's own refuses CPU tensors)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["SynchronisedBatchNorm2d", "count_copies_once", "synchronise_batch_norm"]


class _SumOverProcesses(torch.autograd.Function):
    """Sum over processes whose gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        del ctx
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """``BatchNorm2d`` whose training statistics are those of the global batch; same state dict.

    ``copies`` is how many processes have the same rows, which are the batch then (:func:`count_copies_once`).
    """

    copies = 1

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(n, C, H, W)``; in evaluation mode or with one process as ``BatchNorm2d``."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        given, input = input.dtype, input.float()  # sums of half precision would lose the batch's size
        axes = (0, 2, 3)
        local_count = input.new_tensor([input.numel() / input.shape[1]])
        count = _SumOverProcesses.apply(local_count)
        mean = _SumOverProcesses.apply(input.sum(axes)) / count
        centred = input - mean.view(1, -1, 1, 1)
        variance = _SumOverProcesses.apply(centred.square().sum(axes)) / count
        self._update_running(mean.detach(), variance.detach(), count)
        normalised = centred * torch.rsqrt(variance + self.eps).view(1, -1, 1, 1)
        scaled: Tensor = normalised * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return scaled.to(given)

    def _update_running(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        momentum = 0.1 if self.momentum is None else self.momentum
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, momentum)
            count = count / self.copies
            self.running_var.lerp_(variance * (count / (count - 1)), momentum)


def count_copies_once(model: nn.Module, copies: int) -> None:
    """Tell synchronised norms how many processes have the same rows of the batch that comes."""
    for module in model.modules():
        if isinstance(module, SynchronisedBatchNorm2d):
            module.copies = copies


def synchronise_batch_norm(model: nn.Module) -> nn.Module:
    """Give every ``BatchNorm2d`` of ``model`` global statistics, in place; parameters and names stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SynchronisedBatchNorm2d
    return model
