"""The output of one named layer inside a network, and its gradient, without hooks.

The network is copied without its tensors, which the copy shares; in the copy the layer is replaced by one that hands
on its output and remembers it. Nothing of the network itself is touched.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from robust_core.errors import UserError, unknown_name

__all__ = ["TappedNetwork", "layer_name"]


def layer_name(model: nn.Module, layer: str) -> str:
    """Return the dotted name of a layer written as ``layer3.0.conv1`` or ``layer3_0_conv1``.

    Raises:
        UserError: if the network has no such layer, with the nearest of its stages and blocks.
    """
    names = [name for name, _ in model.named_modules() if name]
    found = [name for name in names if layer in (name, name.replace(".", "_"))]
    if not found:
        raise unknown_name("layer", layer, [name for name in names if name.count(".") <= 1])
    return layer if layer in found else found[0]


class _Tap(nn.Module):
    """The layer, whose output is remembered as a leaf: what comes behind has a gradient down to it, no further."""

    def __init__(self, layer: nn.Module, name: str) -> None:
        super().__init__()
        self.layer = layer
        self.name = name
        self.outputs: list[Tensor] = []

    def forward(self, *inputs: Any, **arguments: Any) -> Tensor:
        output = self.layer(*inputs, **arguments)
        if not isinstance(output, Tensor) or output.dim() != 4:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UserError(
                f"Layer '{self.name}' gives {shape}, expected a map (N, K, h, w): name a layer before the pooling."
            )
        self.outputs.append(output.detach().requires_grad_())
        # not the leaf itself, which a relu may overwrite
        return self.outputs[-1].clone()


class TappedNetwork:
    """A network that gives a named layer's output beside its logits.

    It shares the parameters (which get no gradient) and the buffers of ``model``: in training mode its passes move the
    running statistics of ``model``, in evaluation mode they change nothing. Raises ``UserError`` for an unknown layer.
    """

    def __init__(self, model: nn.Module, layer: str, *, training: bool = False) -> None:
        name = layer_name(model, layer)
        shared: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
        for parameter in model.parameters():
            shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
        twin = copy.deepcopy(model, shared).train(training)
        self._tap = _Tap(twin.get_submodule(name), name)
        parent, _, key = name.rpartition(".")
        twin.get_submodule(parent).add_module(key, self._tap)
        self._twin = twin
        self._dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits ``(N, classes)`` and the layer's output ``(N, K, h, w)``, to which they have a gradient.

        Raises:
            UserError: if the layer gives no map, does not run, or runs more than once in a pass.
        """
        self._tap.outputs.clear()
        with torch.enable_grad():
            logits = cast(Tensor, self._twin(images.detach().to(self._dtype)))
        if len(self._tap.outputs) != 1:
            raise UserError(
                f"Layer '{self._tap.name}' runs {len(self._tap.outputs)} times in a pass, expected once: name another."
            )
        return logits, self._tap.outputs.pop()
