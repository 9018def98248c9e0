"""Stride-2 convolutions by phases equal the library's, value and gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robust_core.models.strided import StridedConv2d, phase_kernel, suits_phases


def pair(inputs, outputs, kernel, bias, seed):
    generator = torch.Generator().manual_seed(seed)
    plain = nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=bias).double()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    ours = StridedConv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=bias).double()
    ours.load_state_dict(plain.state_dict())
    return plain.requires_grad_(False), ours.requires_grad_(False)


@settings(max_examples=40, deadline=None)
@given(
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 6),
    kernel=st.sampled_from([1, 3]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    bias=st.booleans(),
    channels_last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_value_and_gradient(inputs, outputs, kernel, height, width, bias, channels_last, seed):
    plain, ours = pair(inputs, outputs, kernel, bias, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    images = torch.randn(2, inputs, height, width, generator=generator, dtype=torch.float64)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    gradients = []
    for conv in (plain, ours):
        leaf = images.clone().requires_grad_()
        result = conv(leaf)
        weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        gradients.append((result, torch.autograd.grad((result * weights).sum(), leaf)[0]))
    torch.testing.assert_close(gradients[1][0], gradients[0][0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[1][1], gradients[0][1], rtol=1e-12, atol=1e-12)


def test_gradcheck():
    _, ours = pair(2, 3, 3, True, 0)
    images = torch.randn(
        1, 2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    assert torch.autograd.gradcheck(ours, (images,))


def test_phase_kernel_has_every_tap_once():
    weight = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    kernel = phase_kernel(weight)
    assert sorted(kernel[kernel != 0].tolist()) == sorted(weight.flatten().tolist())


def test_weights_that_learn_are_left_to_the_library():
    _, ours = pair(2, 3, 3, True, 0)
    ours.weight.requires_grad_()
    ours(torch.randn(1, 2, 4, 4, dtype=torch.float64)).sum().backward()
    assert ours.weight.grad is not None


@pytest.mark.parametrize(
    ("settings", "suits"),
    [
        ({"kernel_size": 3, "stride": 2, "padding": 1}, True),
        ({"kernel_size": 1, "stride": 2}, True),
        ({"kernel_size": 3, "stride": 1, "padding": 1}, False),
        ({"kernel_size": 3, "stride": 2, "padding": 1, "groups": 2}, False),
        ({"kernel_size": 7, "stride": 2, "padding": 3}, False),
        ({"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2}, False),
    ],
)
def test_which_convolutions_suit(settings, suits):
    assert not suits_phases(nn.Conv2d(32, 4, 3, stride=2, padding=1))
    assert suits_phases(nn.Conv2d(4, 4, **settings)) is suits
