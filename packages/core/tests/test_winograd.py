"""Winograd's convolutions equal the library's, value and gradient, and are used only where they may be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robust_core.models import FrozenView, Network, build_model
from robust_core.models import winograd as module
from robust_core.models.winograd import WinogradConv2d, suits_winograd, with_winograd

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def convolution(inputs: int, outputs: int, bias: bool = True, seed: int = 0) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias).requires_grad_(False)
    for number, parameter in enumerate(conv.parameters()):
        parameter.copy_(normal(*parameter.shape, seed=seed + number) / (9 * inputs) ** 0.5)
    return conv.to(memory_format=torch.channels_last)


def value_and_gradient(conv: nn.Module, maps: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    leaf = maps.detach().requires_grad_()
    result = conv(leaf)
    (gradient,) = torch.autograd.grad(result, leaf, direction)
    return result.detach(), gradient


def relative(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).abs().max() / reference.abs().max())


def exact(conv: nn.Conv2d) -> nn.Conv2d:
    twin = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None)
    twin.load_state_dict(conv.state_dict())
    return twin.double().requires_grad_(False)


class Counted:
    """Counts how often Winograd's way was taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        original = module._Winograd.apply

        def apply(*arguments: object) -> Tensor:
            self.calls += 1
            return original(*arguments)

        monkeypatch.setattr(module._Winograd, "apply", apply)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(8, 11),
    inputs=st.integers(1, 13),
    outputs=st.integers(1, 13),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    bias=st.booleans(),
    channels_last=st.booleans(),
    seed=st.integers(0, 999),
)
def test_value_and_gradient(
    count: int, inputs: int, outputs: int, rows: int, columns: int, bias: bool, channels_last: bool, seed: int
) -> None:
    conv = convolution(inputs, outputs, bias, seed)
    maps = normal(count, inputs, 4 * rows, 4 * columns, seed=seed + 7)
    direction = normal(count, outputs, 4 * rows, 4 * columns, seed=seed + 8)
    if channels_last:
        maps = maps.contiguous(memory_format=torch.channels_last)
        direction = direction.contiguous(memory_format=torch.channels_last)
    ours = value_and_gradient(WinogradConv2d(conv), maps, direction)
    reference = value_and_gradient(exact(conv), maps.double(), direction.double())
    for mine, other in zip(ours, reference, strict=True):
        assert mine.dtype == torch.float32
        assert mine.is_contiguous(memory_format=torch.channels_last)
        assert relative(mine, other) < 1e-5


@pytest.mark.parametrize(("channels", "side", "count"), [(512, 4, 8), (256, 8, 4)])
def test_wide_convolutions_stay_accurate(channels: int, side: int, count: int) -> None:
    conv = convolution(channels, channels)
    maps, direction = normal(count, channels, side, side, seed=3), normal(count, channels, side, side, seed=4)
    ours = value_and_gradient(WinogradConv2d(conv), maps, direction)
    reference = value_and_gradient(exact(conv), maps.double(), direction.double())
    assert relative(ours[0], reference[0]) < 6e-6
    assert relative(ours[1], reference[1]) < 6e-6


def test_batches_larger_than_one_portion(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, maps = WinogradConv2d(convolution(5, 6)), normal(21, 5, 8, 8)
    direction = normal(21, 6, 8, 8, seed=1)
    whole = value_and_gradient(conv, maps, direction)
    monkeypatch.setattr(module, "_MOST_TILES", 16)
    for ours, other in zip(value_and_gradient(conv, maps, direction), whole, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-5)


def test_the_same_input_gives_the_same_bits() -> None:
    conv, maps, direction = WinogradConv2d(convolution(32, 40)), normal(9, 32, 8, 8), normal(9, 40, 8, 8)
    first, second = (value_and_gradient(conv, maps, direction) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_the_matrices_of_tiles_are_exact_in_float32() -> None:
    for matrix in (torch.kron(module._B, module._B), torch.kron(module._A, module._A)):
        assert torch.equal(matrix.float().double(), matrix)


def test_second_derivatives_are_right() -> None:
    conv, maps = convolution(3, 4), normal(8, 3, 4, 4)
    results = []
    for side, images in ((WinogradConv2d(conv), maps), (exact(conv), maps.double())):
        leaf = images.requires_grad_()
        (gradient,) = torch.autograd.grad(side(leaf).pow(3).sum(), leaf, create_graph=True)
        results.append(torch.autograd.grad(gradient.pow(2).sum(), leaf)[0])
    assert relative(results[0], results[1]) < 1e-4


def test_refresh_follows_the_weights_in_place() -> None:
    conv = convolution(6, 5)
    ours, maps, address = WinogradConv2d(conv), normal(8, 6, 4, 4), None
    address = ours.kernels.data_ptr()
    conv.weight.mul_(-2)
    ours.refresh()
    assert ours.kernels.data_ptr() == address
    torch.testing.assert_close(ours(maps), conv(maps), rtol=1e-5, atol=1e-5)
    assert list(ours.state_dict()) == list(conv.state_dict())


@pytest.mark.parametrize(
    ("shape", "taken"),
    [
        ((8, 3, 4, 4), 1),
        ((2, 3, 8, 8), 1),
        ((1, 3, 16, 16), 1),
        ((7, 3, 4, 4), 0),  # few tiles
        ((8, 3, 6, 8), 0),
        ((8, 3, 8, 7), 0),
        ((8, 3, 20, 4), 0),
    ],
)
def test_other_maps_are_left_to_the_library(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], taken: int
) -> None:
    conv, counted = convolution(3, 4), Counted(monkeypatch)
    ours, maps = WinogradConv2d(conv), normal(*shape)
    torch.testing.assert_close(ours(maps), conv(maps), rtol=1e-5, atol=1e-5)
    assert counted.calls == taken


def test_other_circumstances_are_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, counted = convolution(3, 4), Counted(monkeypatch)
    ours, maps = WinogradConv2d(conv), normal(8, 3, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(maps).dtype == torch.bfloat16
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(maps), conv(maps))
    assert ours.double()(maps.double()).dtype == torch.float64
    learning = WinogradConv2d(convolution(3, 4))
    learning.weight.requires_grad_()
    learning(maps).sum().backward()
    assert learning.weight.grad is not None
    assert counted.calls == 0


@pytest.mark.parametrize(
    ("change", "suits"),
    [
        ({}, True),
        ({"in_channels": 255}, False),
        ({"out_channels": 128}, False),
        ({"stride": 2}, False),
        ({"padding": 0}, False),
        ({"kernel_size": 1}, False),
        ({"dilation": 2}, False),
        ({"groups": 2}, False),
        ({"padding_mode": "circular"}, False),
        ({"dtype": torch.float64}, False),
        ({"dtype": torch.bfloat16}, False),
        ({"device": "meta"}, False),
    ],
)
def test_which_convolutions_suit(change: dict[str, object], suits: bool) -> None:
    plain: dict[str, object] = {"in_channels": 256, "out_channels": 256, "kernel_size": 3, "padding": 1}
    conv = nn.Conv2d(**{**plain, **change})  # type: ignore[arg-type]
    assert not suits_winograd(conv)  # it learns
    assert suits_winograd(conv.requires_grad_(False)) is suits
    conv.register_forward_hook(lambda *_: None)
    assert not suits_winograd(conv)


def test_shared_convolutions_are_replaced_together() -> None:
    conv = nn.Conv2d(256, 256, 3, padding=1).requires_grad_(False)
    network = nn.Sequential(conv, nn.Sequential(conv, nn.ReLU()), conv)
    calls = with_winograd(network)
    assert len(calls) == (1 if torch.backends.mkl.is_available() else 0)
    assert network[0] is network[1][0] is network[2]


def wide_network(name: str) -> Network:
    return build_model(name, 4, seed=0).eval()


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="needs MKL")
@pytest.mark.parametrize(
    ("name", "convolutions"), [("resnet18", 6), ("preactresnet18", 6), ("wrn-10-4", 1), ("resnet50-w32", 2)]
)
def test_frozen_views_use_it_in_float32_alone(
    monkeypatch: pytest.MonkeyPatch, name: str, convolutions: int
) -> None:
    model, images = wide_network(name), torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    counted, view = Counted(monkeypatch), FrozenView(model)
    kinds = [type(part) for part in view.modules()]
    assert kinds.count(WinogradConv2d) == convolutions
    precise = FrozenView(model, dtype=torch.float64)
    for other in (precise, FrozenView(model, dtype=torch.bfloat16)):
        assert not any(isinstance(part, WinogradConv2d) for part in other.modules())
    logits, features = view.logits_and_features(images)
    expected, expected_features = precise.logits_and_features(images)
    assert counted.calls == convolutions
    assert relative(logits, expected) < 1e-5
    assert relative(features, expected_features) < 1e-5
    gradients = [value_and_gradient(side, images, logits)[1] for side in (view,)]
    (reference,) = [value_and_gradient(precise, images.double(), logits.double())[1]]
    assert (gradients[0].sign() == reference.sign()).float().mean() > 0.999


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="needs MKL")
def test_a_refreshed_view_follows_the_live_model() -> None:
    model, images = wide_network("wrn-10-4"), torch.rand(2, 3, 32, 32)
    view = FrozenView(model)
    buffers = {name: buffer.data_ptr() for name, buffer in view.named_buffers()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    view.refresh()
    assert {name: buffer.data_ptr() for name, buffer in view.named_buffers()} == buffers
    assert torch.equal(view(images), FrozenView(model)(images))
    assert relative(view(images).detach(), model(images).detach()) < 1e-5


def test_a_compiled_view_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)
    view = FrozenView(wide_network("wrn-10-4"), compile=True)
    assert not any(isinstance(part, WinogradConv2d) for part in view.modules())
