"""Stride-2 convolutions with a fast input gradient on a CPU, where the library's is several times slower.

The gradient of a stride-2 convolution splits into the four phases (even or odd row, even or odd column) of the
input. Each phase is a stride-1 convolution of the output's gradient with a part of the kernel, so all four are one
2x2 convolution with four times the channels, interleaved afterwards (pixel shuffle, Shi et al. 2016).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["StridedConv2d", "phase_kernel", "suits_phases", "with_phases"]


def suits_phases(conv: nn.Conv2d) -> bool:
    """Return whether the phases are faster: stride 2, 1x1 or, with few inputs, 3x3 with padding 1.

    Seven sixteenths of the phases' kernel are zero: measured, that costs more than it gains beyond 16 inputs.
    """
    shape = (conv.kernel_size, conv.padding)
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    few = conv.in_channels <= 16 and shape == ((3, 3), (1, 1))
    return plain and conv.stride == (2, 2) and (few or shape == ((1, 1), (0, 0)))


def phase_kernel(weight: Tensor) -> Tensor:
    """Return the kernel ``(4 I, O, 2, 2)`` of the input gradient's four phases from ``weight`` ``(O, I, 3, 3)``.

    Its outputs are ordered (row phase, column phase, input). With output ``y_j`` made of inputs ``x_(2j-1), x_2j,
    x_(2j+1)``, the gradient of ``x_2j`` needs ``y_j`` (centre tap), that of ``x_(2j+1)`` needs ``y_j`` (last tap)
    and ``y_(j+1)`` (first tap).
    """
    outputs, inputs = weight.shape[:2]
    kernel = weight.new_zeros(2, 2, inputs, outputs, 2, 2)  # phases, input, output, shifts of the output
    taps = {(0, 0): 1, (1, 0): 2, (1, 1): 0}
    for (row_phase, row_shift), row in taps.items():
        for (column_phase, column_shift), column in taps.items():
            kernel[row_phase, column_phase, :, :, row_shift, column_shift] = weight[:, :, row, column].t()
    return kernel.view(4 * inputs, outputs, 2, 2).contiguous(memory_format=torch.channels_last)


def _interleaved(phases: Tensor) -> Tensor:
    """Return the map ``(N, I, 2 h, 2 w)``, channels-last, of phases ``(N, 4 I, h, w)`` ordered as in the kernel."""
    count, channels, height, width = phases.shape
    inputs = channels // 4
    result = torch.empty(count, 2 * height, 2 * width, inputs, dtype=phases.dtype, device=phases.device)
    split = phases.permute(0, 2, 3, 1).unflatten(3, (2, 2, inputs))
    result.view(count, height, 2, width, 2, inputs).copy_(split.permute(0, 1, 3, 2, 4, 5))
    return result.permute(0, 3, 1, 2)


class _Strided(torch.autograd.Function):
    """The convolution as the library has it, with the input gradient by phases; weights get no gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        ctx.save_for_backward(weight)
        return F.conv2d(images, weight, bias, stride=2, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        (gradient,) = gradients
        if weight.shape[2] == 1:
            inner = F.conv2d(gradient, weight.transpose(0, 1))
            size = (inner.shape[0], inner.shape[1], 2 * inner.shape[2], 2 * inner.shape[3])
            result = torch.empty(
                size, dtype=inner.dtype, device=inner.device, memory_format=torch.channels_last
            ).zero_()
            result[:, :, ::2, ::2] = inner
            return result, None, None, None
        # padded on all sides because that is free; the first row and column are not wanted
        phases = F.conv2d(gradient, phase_kernel(weight), padding=1)[:, :, 1:, 1:]
        return _interleaved(phases), None, None, None


def with_phases(network: nn.Module) -> None:
    """Let the convolutions of ``network`` that suit take their gradients by phases; weights and names stay.

    On a CPU and without gradients of weights only: there the library's own is slow.
    """
    for module in network.modules():
        if type(module) is not nn.Conv2d or not suits_phases(module):
            continue
        if module.weight.device.type == "cpu" and not module.weight.requires_grad:
            module.__class__ = StridedConv2d


class StridedConv2d(nn.Conv2d):
    """A :func:`suits_phases` convolution that takes even maps by phases and all others as usual."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolved map ``(N, O, H / 2, W / 2)``."""
        if (
            input.shape[2] % 2
            or input.shape[3] % 2
            or self.weight.requires_grad
            or torch.compiler.is_compiling()
        ):
            return super().forward(input)
        result: Tensor = _Strided.apply(input, self.weight, self.bias, self.padding[0])
        return result
