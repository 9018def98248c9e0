"""3x3 convolutions with many channels on small maps by fewer multiplications, for float32 on a CPU.

Winograd's F(4x4, 3x3) (Lavin and Gray 2016, "Fast algorithms for convolutional neural networks"): a 4x4 tile of the
output comes from a 6x6 window ``d`` of the input and a kernel ``g`` as ``A [(G g G') * (B d B')] A'``, with 36
multiplications instead of 144. Summed over the input channels these are 36 matrix products, which run at full speed
where the library's convolution of a channels-last map of 4x4 or 8x8 does not (measured: 1.7 to 7 times faster).
The gradient is the transposed chain of the same matrices.

The points of interpolation are 0, +-5/8, +-3/2 and infinity: with them ``A`` and ``B`` are exact in float32 and the
error is a third of that with the customary 0, +-1, +-2. At 512 channels the largest error is about 3e-6 of the largest
output; the library's own is 2e-6.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["WinogradConv2d", "suits_winograd", "with_winograd"]

_POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)
_TILE, _WINDOW = 4, 6
_FEWEST_CHANNELS = 256
_LARGEST_SIDE = 16
# Below, reading the kernels (four times as large as the weights) takes longer than the multiplications saved.
_FEWEST_TILES = 8
# At once: a matrix product does not gain from more, and what lies between the products stays in the cache.
_MOST_TILES = 256


def _matrices() -> tuple[Tensor, Tensor, Tensor]:
    """Return ``B (6, 6)``, ``G (6, 3)`` and ``A (4, 6)``, float64, whose last point is infinity."""
    inputs, kernel, output = np.zeros((6, 6)), np.zeros((6, 3)), np.zeros((4, 6))
    for row, point in enumerate(_POINTS):
        others = [other for other in _POINTS if other != point]
        inputs[row, :5] = np.poly(others)[::-1]
        kernel[row] = point ** np.arange(3) / np.prod(point - np.array(others))
        output[:, row] = point ** np.arange(4)
    inputs[5] = np.poly(_POINTS)[::-1]
    kernel[5, 2] = output[3, 5] = 1
    return torch.from_numpy(inputs), torch.from_numpy(kernel), torch.from_numpy(output)


_B, _G, _A = _matrices()
_KERNEL = torch.kron(_G, _G).float()  # (36, 9)
_OUTPUT = torch.kron(_A, _A).float()  # (16, 36)


class _Window(NamedTuple):
    """The part of the map under one tile's window, and the window's transform without the zeros around the map."""

    rows: slice
    columns: slice
    transform: Tensor  # (36, rows * columns)


@lru_cache(maxsize=64)
def _windows(height: int, width: int) -> list[_Window]:
    """Return the windows of all tiles of a map, row by row."""

    def along(side: int) -> list[tuple[slice, Tensor]]:
        starts = range(-1, side - 1, _TILE)
        spans = [slice(max(start, 0), min(start + _WINDOW, side)) for start in starts]
        return [
            (span, _B[:, span.start - start : span.stop - start].contiguous())
            for span, start in zip(spans, starts, strict=True)
        ]

    return [
        _Window(rows, columns, torch.kron(down, across).float())
        for rows, down in along(height)
        for columns, across in along(width)
    ]


def _tiled(maps: Tensor) -> Tensor:
    """Return the tiles ``(h, w, N, 4, 4, C)`` of contiguous maps ``(N, 4 h, 4 w, C)``, as a view."""
    count, height, width, channels = maps.shape
    tiles = maps.view(count, height // _TILE, _TILE, width // _TILE, _TILE, channels)
    return tiles.permute(1, 3, 0, 2, 4, 5)


def _convolve(maps: Tensor, kernels: Tensor, bias: Tensor | None, result: Tensor) -> None:
    """Write the convolution of ``maps`` ``(N, H, W, I)`` with ``kernels`` ``(36, O, I)`` to ``result``."""
    windows = _windows(maps.shape[1], maps.shape[2])
    count = maps.shape[0]
    spectra = maps.new_empty(len(windows), count, _WINDOW**2, maps.shape[3])
    for window, spectrum in zip(windows, spectra, strict=True):
        inputs = maps[:, window.rows, window.columns].flatten(1, 2)
        torch.bmm(window.transform.expand(count, -1, -1), inputs, out=spectrum)
    products = torch.bmm(spectra.flatten(0, 1).transpose(0, 1), kernels.transpose(1, 2))
    tiles = torch.bmm(_OUTPUT.expand(products.shape[1], -1, -1), products.transpose(0, 1))
    target = _tiled(result)
    if bias is None:
        target.copy_(tiles.view(target.shape))
    else:
        torch.add(tiles.view(target.shape), bias, out=target)


def _transposed(gradients: Tensor, kernels: Tensor, result: Tensor) -> None:
    """Write the input's gradient, of ``gradients`` ``(N, H, W, O)``, to ``result`` ``(N, H, W, I)``."""
    windows = _windows(gradients.shape[1], gradients.shape[2])
    count = gradients.shape[0]
    tiles = _tiled(gradients).reshape(len(windows) * count, _TILE**2, gradients.shape[3])
    spectra = torch.bmm(_OUTPUT.t().expand(len(tiles), -1, -1), tiles)
    products = torch.bmm(spectra.transpose(0, 1), kernels).transpose(0, 1)
    # Windows overlap.
    result.zero_()
    for window, product in zip(windows, products.split(count), strict=True):
        part = result[:, window.rows, window.columns]
        part += torch.bmm(window.transform.t().expand(count, -1, -1), product).view(part.shape)


class _Winograd(torch.autograd.Function):
    """The convolution or its transpose, each the other's gradient; kernels and bias get none."""

    @staticmethod
    def forward(maps: Tensor, kernels: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
        count, _, height, width = maps.shape
        shape = (count, kernels.shape[2 if transposed else 1], height, width)
        # Not a view: what follows may work in place.
        result = torch.empty(shape, dtype=maps.dtype, memory_format=torch.channels_last)
        source, sink = maps.permute(0, 2, 3, 1).contiguous(), result.permute(0, 2, 3, 1)
        some = max(1, _MOST_TILES * _TILE**2 // (height * width))
        for part, target in zip(source.split(some), sink.split(some), strict=True):
            if transposed:
                _transposed(part, kernels, target)
            else:
                _convolve(part, kernels, bias, target)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        _, kernels, _, ctx.transposed = inputs
        ctx.save_for_backward(kernels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        result = _Winograd.apply(gradients[0], *ctx.saved_tensors, None, not ctx.transposed)
        return cast(Tensor, result), None, None, None


class WinogradConv2d(nn.Conv2d):
    """A convolution with the given one's parameters (shared, not learnt) that multiplies less where it can.

    It maps ``(N, I, H, W)`` to ``(N, O, H, W)``, channels-last, with H and W divisible by 4 and at most 16, at least
    8 tiles in all, in float32 on the CPU and outside of compilation and autocast; in all other cases it is
    ``F.conv2d``. ``refresh`` prepares the kernels from the present weights, in place.
    """

    kernels: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        channels = conv.in_channels, conv.out_channels
        super().__init__(*channels, 3, padding=1, bias=conv.bias is not None, device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        kernels = conv.weight.new_empty(_WINDOW**2, conv.out_channels, conv.in_channels)
        self.register_buffer("kernels", kernels, persistent=False)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the present weights."""
        taps = self.weight.permute(0, 2, 3, 1).reshape(self.out_channels, 9, self.in_channels)
        torch.bmm(_KERNEL.expand(self.out_channels, -1, -1), taps, out=self.kernels.transpose(0, 1))

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolved map ``(N, O, H, W)``."""
        if not self._can_tile(input):
            return F.conv2d(input, self.weight, self.bias, padding=1)
        return cast(Tensor, _Winograd.apply(input, self.kernels, self.bias, False))

    def _can_tile(self, maps: Tensor) -> bool:
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or maps.dim() != 4:
            return False
        if maps.dtype != torch.float32 or maps.device.type != "cpu" or self.weight.requires_grad:
            return False
        count, _, height, width = maps.shape
        fits = height % _TILE == width % _TILE == 0 and max(height, width) <= _LARGEST_SIDE
        return fits and count * height * width >= _FEWEST_TILES * _TILE**2


def suits_winograd(module: nn.Module) -> bool:
    """Return whether the module is a plain 3x3 convolution with at least 256 channels in and out, float32 on a CPU."""
    if type(module) is not nn.Conv2d or module._forward_pre_hooks or module._forward_hooks:
        return False
    shape = (module.kernel_size, module.stride, module.padding, module.dilation)
    return (
        shape == ((3, 3), (1, 1), (1, 1), (1, 1))
        and (module.groups, module.padding_mode) == (1, "zeros")
        and min(module.in_channels, module.out_channels) >= _FEWEST_CHANNELS
        and (module.weight.dtype, module.weight.device.type) == (torch.float32, "cpu")
        and not module.weight.requires_grad
    )


def with_winograd(network: nn.Module) -> list[Callable[[], None]]:
    """Replace the convolutions inside ``network`` that suit; return the calls that prepare their kernels.

    Nothing is replaced without MKL, whose matrix products are what makes this faster.
    """
    if not torch.backends.mkl.is_available():
        return []
    replaced: dict[nn.Module, WinogradConv2d] = {}
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child not in replaced and suits_winograd(child):
                replaced[child] = WinogradConv2d(cast(nn.Conv2d, child))
            if child in replaced:
                setattr(parent, name, replaced[child])
    return [conv.refresh for conv in replaced.values()]
