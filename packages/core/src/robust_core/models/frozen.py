"""The frozen view: what attacks and class activation maps run on instead of the live model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from robust_core.errors import UserError
from robust_core.models.folding import folded_copy
from robust_core.models.network import Network, PooledHead
from robust_core.models.strided import with_phases
from robust_core.models.winograd import with_winograd

__all__ = ["FrozenView", "cast_outputs", "frozen", "only_logits"]

_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)
_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


class FrozenView(nn.Module):
    """A copy of a model for attacks: evaluation mode, norms folded, channels-last, no parameter gradients.

    It takes images ``(N, C, H, W)`` of any floating type, computes in ``dtype`` (the model's own if None) and
    returns float32 (float64 for float64); gradients with respect to the images have the images' type. In
    bfloat16 a pooled head still runs in float32. The live model's weights arrive by ``refresh``, in place;
    its mode, gradients, buffers and hooks are never touched. The view stays on the device of its making.
    """

    def __init__(self, model: nn.Module, *, dtype: torch.dtype | None = None, compile: bool = False) -> None:
        super().__init__()
        live = _unwrapped(model)
        dtype = _own_dtype(live) if dtype is None else dtype
        if dtype not in _DTYPES:
            raise UserError(f"A frozen view cannot run in {dtype}; use float32, bfloat16 or float64.")
        self.dtype = dtype
        self.out_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.network, refreshers = folded_copy(live, dtype, self.out_dtype)
        if not compile:
            refreshers += with_winograd(self.network)
            with_phases(self.network)
        # In a tuple, so that nothing of the live model is registered here.
        self._refreshers = tuple(refreshers)
        self._run: Callable[[Tensor], Tensor] = self._logits
        self._run_both: Callable[[Tensor], tuple[Tensor, Tensor]] = self._logits_and_features
        self._run_all: Callable[..., Any] = self._outputs
        if compile:
            self._run_all = of_one_size(torch.compile(self._outputs))
            self._run = of_one_size(torch.compile(self._logits))
            self._run_both = of_one_size(torch.compile(self._logits_and_features))
        self.refresh()
        super().train(False)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the live model's present weights and running statistics, in place."""
        for refresh in self._refreshers:
            refresh()

    def train(self, mode: bool = True) -> FrozenView:  # noqa: ARG002
        """Return the view as it is: it has no training mode."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, classes)``."""
        return self._run(images)

    def logits_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(N, classes)`` and the feature map ``(N, K, h, w)`` of one pass."""
        self._split()
        return self._run_both(images)

    def call(self, images: Tensor, **arguments: Any) -> Any:
        """Return what the network gives with further arguments, its tensors (in a tuple of them too) as logits.

        For networks that have more to say than logits; ``arguments`` are the network's own.
        """
        # per-image arguments cannot follow a batch that is filled up for the compiled network
        alone = any(isinstance(value, Tensor) for value in arguments.values())
        return (self._outputs if alone else self._run_all)(images, **arguments)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the feature map ``(N, K, h, w)``."""
        network = cast(Network, self._split())
        return network.forward_features(self._entered(images)).to(self.out_dtype)

    def forward_head(self, features: Tensor) -> Tensor:
        """Return logits ``(N, classes)`` of a feature map."""
        network = cast(Network, self._split())
        head_dtype = self.dtype if self.pooled_head() is None else self.out_dtype
        return only_logits(network.forward_head(features.to(head_dtype)), len(features)).to(self.out_dtype)

    def pooled_head(self) -> PooledHead | None:
        """Return the head's parts (its norm a ``ChannelAffine``), or None if it is not pooling and linear."""
        return self.network.pooled_head() if isinstance(self.network, Network) else None

    def _entered(self, images: Tensor) -> Tensor:
        memory_format = torch.channels_last if images.dim() == 4 else torch.preserve_format
        return images.to(dtype=self.dtype, memory_format=memory_format)

    def _outputs(self, images: Tensor, **arguments: Any) -> Any:
        return cast_outputs(self.network(self._entered(images), **arguments), self.out_dtype)

    def _logits(self, images: Tensor) -> Tensor:
        if isinstance(self.network, Network):
            return self.forward_head(self.forward_features(images))
        return only_logits(self.network(self._entered(images)), len(images)).to(self.out_dtype)

    def _logits_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.forward_features(images)
        return self.forward_head(features), features

    def _split(self) -> nn.Module:
        if hasattr(self.network, "forward_features") and hasattr(self.network, "forward_head"):
            return self.network
        raise UserError(
            f"{type(self.network).__name__} has no feature map to show; give it forward_features(images) and "
            f"forward_head(features), or use a network of robust_core.models."
        )


def cast_outputs(found: Any, dtype: torch.dtype) -> Any:
    """Return a tensor, or the tensors of a (named) tuple of any depth, in another precision."""
    return _each(found, lambda tensor: tensor.to(dtype))


def _each(found: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a tensor, or the tensors of a (named) tuple of any depth, changed."""
    if isinstance(found, Tensor):
        return change(found)
    parts = [_each(part, change) for part in found]
    return type(found)(*parts) if hasattr(found, "_fields") else tuple(parts)


def only_logits(found: object, count: int) -> Tensor:
    """Return what a model gave for ``count`` images; ``UserError`` if that is no tensor."""
    if isinstance(found, Tensor):
        return found
    raise UserError(
        f"The model returned a {type(found).__name__}, expected logits ({count}, classes): "
        "give a model that returns the logits alone."
    )


def of_one_size(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``run`` for batches filled up to the largest seen: a network is compiled anew for each size."""
    largest = 0

    def call(images: Tensor, **arguments: Any) -> Any:
        nonlocal largest
        count = images.shape[0]
        largest = max(largest, count)
        if count == largest:
            return run(images, **arguments)
        filled = torch.cat([images, images.new_zeros((largest - count, *images.shape[1:]))])
        return _each(run(filled, **arguments), lambda tensor: tensor[:count])

    return call


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of several processes, weight averages and compilation."""
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _own_dtype(model: nn.Module) -> torch.dtype:
    tensors = (tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point())
    return next(tensors, torch.empty(0, dtype=torch.float32)).dtype


def frozen(model: Any, *, dtype: torch.dtype | None = None) -> Any:
    """Return what an attack can call: a frozen view of a module; a view or any other callable as it is.

    Raises ``UserError`` if ``model`` cannot be called.
    """
    if isinstance(model, FrozenView):
        return model
    if isinstance(model, nn.Module):
        return FrozenView(model, dtype=dtype)
    if callable(model):
        return model
    raise UserError(
        f"A model must be a module or a function from images to logits, not {type(model).__name__}."
    )
