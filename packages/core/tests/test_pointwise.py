"""Shortcuts of few channels: the same convolution, by another way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robust_core.models import FrozenView, build_model
from robust_core.models.pointwise import SlicedConv2d, pointwise


@pytest.mark.parametrize("size", [8, 7])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_strided_convolution(size, layout):
    images = torch.rand(3, 4, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    conv = pointwise(4, 8, 2).double()
    expected = F.conv2d(images, conv.weight, None, 2)  # contiguous, where the library is right
    found = conv(images.contiguous(memory_format=layout))
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.square().sum(), conv.weight)
    (right,) = torch.autograd.grad(expected.square().sum(), conv.weight)
    torch.testing.assert_close(gradient, right)


@pytest.mark.parametrize(
    ("planes", "stride", "kind"), [(15, 2, SlicedConv2d), (16, 2, nn.Conv2d), (4, 1, nn.Conv2d)]
)
def test_only_what_is_at_fault_is_sliced(planes, stride, kind):
    assert type(pointwise(planes, 32, stride)) is kind


@pytest.mark.parametrize("name", ["resnet18-w4", "resnet50-w8", "preactresnet18-w8", "wrn-10-1"])
def test_no_network_holds_a_convolution_at_fault(name):
    model = build_model(name, 3, seed=0)
    for twin in (model, FrozenView(model)):
        for module in twin.modules():
            if type(module) is nn.Conv2d and module.kernel_size == (1, 1) and module.stride != (1, 1):
                assert module.in_channels >= 16
