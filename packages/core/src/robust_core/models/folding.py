"""A copy of a network without batch norm, and the instructions that bring it up to date in place."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robust_core.models.network import Network

__all__ = ["ChannelAffine", "folded_copy"]

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class ChannelAffine(nn.Module):
    """``x * weight + bias`` per channel (dimension 1): a batch norm in evaluation mode, in one pass."""

    weight: Tensor
    bias: Tensor

    def __init__(self, channels: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(channels, dtype=dtype, device=device))
        self.register_buffer("bias", torch.empty(channels, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled and shifted map, of the same shape."""
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return torch.addcmul(self.bias.view(shape), x, self.weight.view(shape))


class _Scratch:
    """One buffer for all weights on their way from one layout and precision to another, in this order.

    Both at once is several times slower, and fresh memory for each weight costs as much as the work itself.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """Return memory of the target's shape and layout, to be used at once."""
        buffer = self._buffers.get((dtype, target.device))
        if buffer is None or buffer.numel() < target.numel():
            buffer = torch.empty(target.numel(), dtype=dtype, device=target.device)
            self._buffers[dtype, target.device] = buffer
        return buffer[: target.numel()].as_strided(target.shape, target.stride())


def _norm_scale_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the scale and shift per channel, float64, of a batch norm in evaluation mode."""
    mean, variance = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
    scale = (variance + norm.eps).rsqrt_()
    if norm.weight is not None:
        scale *= norm.weight
    shift = -mean * scale
    if norm.bias is not None:
        shift += norm.bias
    return scale, shift


def _refresh_affine(norm: _BatchNorm, affine: ChannelAffine) -> None:
    scale, shift = _norm_scale_shift(norm)
    affine.weight.copy_(scale)
    affine.bias.copy_(shift)


def _refresh_folded(conv: nn.Conv2d, norm: _BatchNorm, folded: nn.Conv2d, scratch: _Scratch) -> None:
    scale, shift = _norm_scale_shift(norm)
    if conv.bias is not None:
        shift += conv.bias * scale
    cast(Tensor, folded.bias).copy_(shift)
    # In float32 or better, rounded once to the view's precision.
    target = folded.weight
    precise = torch.promote_types(torch.promote_types(conv.weight.dtype, target.dtype), torch.float32)
    product = target if target.dtype == precise else scratch.like(target, precise)
    torch.mul(conv.weight, scale.to(precise).view(-1, 1, 1, 1), out=product)
    if product is not target:
        target.copy_(product)


def _refresh_tensor(module: nn.Module, key: str, target: Tensor, scratch: _Scratch) -> None:
    source: Tensor = getattr(module, key)
    if source.dtype != target.dtype and source.stride() != target.stride():
        source = scratch.like(target, source.dtype).copy_(source)
    target.copy_(source)


@torch.no_grad()
def folded_copy(
    model: nn.Module, dtype: torch.dtype, head_dtype: torch.dtype
) -> tuple[nn.Module, list[Callable[[], None]]]:
    """Return a copy in evaluation mode without batch norm, and the calls that fill it from the live model.

    The copy's tensors are allocated here once and hold nothing until the calls have run. Modules of a
    ``Network``'s pooled head get ``head_dtype``, all others ``dtype``. The live model is neither touched nor
    shared.
    """
    modules = {name: module for name, module in model.named_modules() if not _is_unused(model, name)}
    pairs = model.conv_norm_pairs() if isinstance(model, Network) else []
    conv_of = {norm: conv for conv, norm in pairs if _uses_running_statistics(modules[norm])}
    twin = copy.deepcopy(model, _substitutes(model, modules, set(conv_of), dtype, head_dtype)).eval()

    scratch = _Scratch()
    refreshers: list[Callable[[], None]] = []
    for name, module in modules.items():
        copied = twin.get_submodule(name)
        if name in conv_of:
            conv, folded = modules[conv_of[name]], cast(nn.Conv2d, twin.get_submodule(conv_of[name]))
            folded.bias = nn.Parameter(folded.weight.new_empty(folded.out_channels), requires_grad=False)
            refreshers.append(partial(_refresh_folded, conv, module, folded, scratch))
        elif isinstance(copied, ChannelAffine):
            refreshers.append(partial(_refresh_affine, cast(_BatchNorm, module), copied))
        elif name not in conv_of.values():
            refreshers += [
                partial(_refresh_tensor, module, key, target, scratch) for key, target in _own_tensors(copied)
            ]
    return twin, refreshers


def _substitutes(
    model: nn.Module,
    modules: dict[str, nn.Module],
    folded_norms: set[str],
    dtype: torch.dtype,
    head_dtype: torch.dtype,
) -> dict[int, Any]:
    """Return deepcopy's memo: what stands in the copy for each tensor and module of the original.

    So nothing heavy is copied, gradients stay behind, and a process group inside a norm is never reached.
    """
    head = model.pooled_head() if isinstance(model, Network) else None
    in_head = {id(head.norm), id(head.linear)} if head is not None else set()
    memo: dict[int, Any] = {}
    for name, module in model.named_modules():
        target = head_dtype if id(module) in in_head else dtype
        if name in folded_norms or name not in modules:
            memo[id(module)] = nn.Identity()
        elif _uses_running_statistics(module):
            norm = cast(_BatchNorm, module)
            memo[id(norm)] = ChannelAffine(norm.num_features, target, cast(Tensor, norm.running_mean).device)
        else:
            for _, tensor in _own_tensors(module):
                if id(tensor) not in memo:
                    memo[id(tensor)] = _empty_twin(tensor, target)
        if isinstance(model, Network):
            # A user's counting hook must not count the view's passes; elsewhere hooks may be the computation.
            memo.update({id(getattr(module, hooks)): OrderedDict() for hooks in _HOOKS})
    return memo


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of the module itself, by name."""
    for key, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield key, tensor


def _empty_twin(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    twin = torch.empty_like(
        tensor,
        dtype=dtype if tensor.is_floating_point() else tensor.dtype,
        memory_format=torch.channels_last if tensor.dim() == 4 else torch.contiguous_format,
        requires_grad=False,
    )
    return nn.Parameter(twin, requires_grad=False) if isinstance(tensor, nn.Parameter) else twin


def _uses_running_statistics(module: nn.Module) -> bool:
    """Say whether the module is a batch norm that is an affine map in evaluation mode."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _is_unused(model: nn.Module, name: str) -> bool:
    unused = model.unused if isinstance(model, Network) else ()
    return any(name == top or name.startswith(f"{top}.") for top in unused)
