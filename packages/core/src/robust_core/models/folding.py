"""A copy of a network without batch norm, and the instructions that bring it up to date in place."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
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


def _refresh_folded(conv: nn.Conv2d, norm: _BatchNorm, folded: nn.Conv2d) -> None:
    scale, shift = _norm_scale_shift(norm)
    if conv.bias is not None:
        shift += conv.bias * scale
    cast(Tensor, folded.bias).copy_(shift)
    # In float32 or better, rounded once to the view's precision.
    precise = torch.promote_types(torch.promote_types(conv.weight.dtype, folded.weight.dtype), torch.float32)
    torch.mul(conv.weight, scale.to(precise).view(-1, 1, 1, 1), out=folded.weight)


def _can_replace(norm: nn.Module) -> bool:
    """Say whether the norm uses running statistics in evaluation mode; without any it stays a batch norm."""
    return isinstance(norm, _BatchNorm) and norm.running_mean is not None


def _empty_twin(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    twin = torch.empty_like(
        tensor,
        dtype=dtype if tensor.is_floating_point() else tensor.dtype,
        memory_format=torch.channels_last if tensor.dim() == 4 else torch.contiguous_format,
        requires_grad=False,
    )
    return nn.Parameter(twin, requires_grad=False) if isinstance(tensor, nn.Parameter) else twin


@torch.no_grad()
def folded_copy(
    model: nn.Module, dtype: torch.dtype, head_dtype: torch.dtype
) -> tuple[nn.Module, list[Callable[[], None]]]:
    """Return a copy in evaluation mode without batch norm, and the calls that fill it from the live model.

    The copy's tensors are allocated here once; until the calls have run they hold nothing. Modules of a ``Network``'s
    pooled head get ``head_dtype``, all others ``dtype``. Nothing of the live model is touched or shared.
    """
    modules = dict(model.named_modules())
    pairs = model.conv_norm_pairs() if isinstance(model, Network) else []
    conv_of = {norm: conv for conv, norm in pairs if _can_replace(modules[norm])}
    head = model.pooled_head() if isinstance(model, Network) else None
    in_head = {id(part) for part in head[:1] + head[3:] if part is not None} if head else set()

    # The memo of deepcopy decides what stands in the copy for each tensor and module of the original: nothing
    # heavy is copied, gradients stay behind, and a process group inside a norm is never reached.
    memo: dict[int, Any] = {}
    refreshers: list[Callable[[], None]] = []
    skipped = {name for name in modules for top in getattr(model, "unused", ()) if _inside(name, top)}
    memo.update({id(modules[name]): nn.Identity() for name in skipped})
    for name, module in modules.items():
        if name in skipped:
            continue
        target = head_dtype if id(module) in in_head else dtype
        if name in conv_of:
            memo[id(module)] = nn.Identity()
        elif _can_replace(module):
            norm = cast(_BatchNorm, module)
            affine = ChannelAffine(norm.num_features, target, cast(Tensor, norm.running_mean).device)
            memo[id(module)] = affine
            refreshers.append(_bind(_refresh_affine, norm, affine))
        else:
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None and id(tensor) not in memo:
                    memo[id(tensor)] = _empty_twin(tensor, target)
        if isinstance(model, Network):
            # A counting hook of the user must not count the view's passes. (Elsewhere hooks may be the computation.)
            memo.update(
                {id(getattr(module, hook)): OrderedDict() for hook in _HOOKS if hasattr(module, hook)}
            )
    twin = cast(nn.Module, copy.deepcopy(model, memo)).eval()

    for name, module in modules.items():
        if name in skipped or name in conv_of or _can_replace(module):
            continue
        copied = twin.get_submodule(name)
        if name in conv_of.values():
            continue
        refreshers += [
            _bind(_copy_tensor, module, key, tensor)
            for key, tensor in (*copied._parameters.items(), *copied._buffers.items())
            if tensor is not None
        ]
    for norm_name, conv_name in conv_of.items():
        conv, folded = cast(nn.Conv2d, modules[conv_name]), cast(nn.Conv2d, twin.get_submodule(conv_name))
        folded.bias = nn.Parameter(folded.weight.new_empty(conv.out_channels), requires_grad=False)
        refreshers.append(_bind(_refresh_folded, conv, cast(_BatchNorm, modules[norm_name]), folded))
    return twin, refreshers


def _bind(function: Callable[..., None], *arguments: Any) -> Callable[[], None]:
    return lambda: function(*arguments)


def _copy_tensor(module: nn.Module, key: str, target: Tensor) -> None:
    target.copy_(getattr(module, key))


def _inside(name: str, top: str) -> bool:
    return name == top or name.startswith(f"{top}.")
