"""The frozen view: equal to the model, fresh after ``refresh``, and without a trace on the live model."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robust_core.errors import UserError
from robust_core.models import FrozenView, Network, PooledHead, build_model, frozen
from robust_core.models.folding import ChannelAffine
from robust_core.models.frozen import of_one_size

CASES = [
    ("resnet18-w8", 32),
    ("resnet18-w8", 64),
    ("resnet34-w4", 32),
    ("resnet50-w4", 32),
    ("preactresnet18-w8", 32),
    ("preactresnet18-w8", 64),
    ("wrn-16-2", 32),
    ("wrn-10-1", 64),  # its stem feeds a shortcut too, so its first norm is not folded
    ("resnet8-s2", 32),
]


def randomise_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm statistics and an affine map that an error would show in."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor, low, high in (
                    (module.running_mean, -0.3, 0.3),
                    (module.running_var, 0.4, 1.6),
                    (module.weight, -0.5, 1.5),
                    (module.bias, -0.4, 0.4),
                ):
                    if tensor is not None:
                        tensor.uniform_(low, high, generator=generator)
    return model


def network(name: str, size: int = 32, seed: int = 0) -> Network:
    model = build_model(name, 6, image_size=size, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), seed=seed)
    randomise_norms(model, seed)
    return model


def images_of(size: int = 32, count: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5)).to(dtype)


def relative(ours: Tensor, reference: Tensor) -> float:
    ours, reference = ours.detach(), reference.detach()
    return float((ours - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize(("name", "size"), CASES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_logits_and_features_equal_the_models(name: str, size: int, dtype: torch.dtype, bound: float) -> None:
    model = network(name, size).to(dtype).eval()
    images = images_of(size, dtype=dtype)
    view = FrozenView(model)
    assert view.dtype == dtype
    logits, features = view.logits_and_features(images)
    assert logits.dtype == features.dtype == dtype
    assert relative(logits, model(images)) < bound
    assert relative(features, model.forward_features(images)) < bound
    assert torch.equal(view(images), logits)
    assert torch.equal(view.forward_features(images), features)
    assert torch.equal(view.forward_head(features), logits)


@pytest.mark.parametrize("name", ["resnet18-w8", "preactresnet18-w8", "wrn-10-1", "resnet8-s2"])
def test_image_gradients_equal_the_models(name: str) -> None:
    model = network(name).double().eval()
    images = images_of(dtype=torch.float64).requires_grad_()
    labels = torch.arange(3)
    gradients = [
        torch.autograd.grad(nn.functional.cross_entropy(net(images), labels), images)[0]
        for net in (model, FrozenView(model))
    ]
    assert relative(gradients[1], gradients[0]) < 1e-11


def test_a_float64_view_of_a_float32_model_folds_in_float64() -> None:
    model = network("resnet18-w8")
    view = FrozenView(model, dtype=torch.float64)
    images = images_of()
    logits = view(images)
    assert logits.dtype == torch.float64
    assert relative(logits, copy.deepcopy(model).double().eval()(images.double())) < 1e-12


@pytest.mark.parametrize("name", ["resnet18-w8", "preactresnet18-w8", "wrn-16-2", "resnet8-s2"])
def test_bfloat16_stays_inside(name: str) -> None:
    model = network(name).eval()
    images = images_of(count=8).requires_grad_()
    view = FrozenView(model, dtype=torch.bfloat16)
    logits, features = view.logits_and_features(images)
    assert logits.dtype == features.dtype == torch.float32
    assert relative(logits, model(images)) < 0.05
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert gradient.dtype == torch.float32
    head = view.pooled_head()
    assert head is not None
    assert head.linear.weight.dtype == torch.float32
    inner = [p for p in view.network.parameters() if p.dim() == 4]
    assert {p.dtype for p in inner} == {torch.bfloat16}


def test_bfloat16_weights_are_folded_before_they_are_rounded() -> None:
    model = network("resnet8-s2").eval()
    view = FrozenView(model, dtype=torch.bfloat16)
    scale = model.bn1.weight * (model.bn1.running_var.double() + model.bn1.eps).rsqrt()
    expected = (model.conv1.weight.double() * scale.view(-1, 1, 1, 1)).bfloat16()
    ours = view.network.get_parameter("conv1.weight")
    assert (ours != expected).float().mean() < 0.01  # float32 instead of float64 before rounding
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("name", ["resnet18-w8", "preactresnet18-w8", "wrn-16-2"])
def test_norms_are_gone_and_weights_are_channels_last(name: str) -> None:
    model = network(name)
    view = FrozenView(model)
    kinds = [type(module) for module in view.modules()]
    assert not any(issubclass(kind, nn.modules.batchnorm._BatchNorm) for kind in kinds)
    norms = sum(
        isinstance(module, nn.BatchNorm2d)
        for key, module in model.named_modules()
        if not key.startswith("sub_block1")
    )
    assert kinds.count(ChannelAffine) == norms - len(model.conv_norm_pairs())
    assert not any(parameter.requires_grad for parameter in view.parameters())
    assert not view.training
    assert not view.train().training
    for parameter in view.parameters():
        assert parameter.dim() != 4 or parameter.is_contiguous(memory_format=torch.channels_last)


def test_resnets_fold_every_norm_and_the_unused_block_is_left_out() -> None:
    assert not any(isinstance(m, ChannelAffine) for m in FrozenView(network("resnet18-w8")).modules())
    view = FrozenView(network("wrn-10-1"))
    assert not any(key.startswith("network.sub_block1.") for key in view.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_refresh_follows_the_live_model_in_place(dtype: torch.dtype) -> None:
    model, images = network("preactresnet18-w8"), images_of()
    view = FrozenView(model, dtype=dtype)
    addresses = {key: value.data_ptr() for key, value in view.state_dict().items()}
    stale = view(images)
    model.train()(images).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert torch.equal(view(images), stale)
    view.refresh()
    assert {key: value.data_ptr() for key, value in view.state_dict().items()} == addresses
    assert torch.equal(view(images), FrozenView(model, dtype=dtype)(images))
    assert not torch.equal(view(images), stale)


def test_refresh_follows_replaced_parameters() -> None:
    model, images = network("resnet8-s2"), images_of()
    view = FrozenView(model)
    model.conv1.weight = nn.Parameter(torch.zeros_like(model.conv1.weight))
    model.linear.weight.data = torch.ones_like(model.linear.weight)
    view.refresh()
    assert relative(view(images), model.eval()(images)) < 1e-5


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_of_the_live_model_changes_nothing(layout: torch.memory_format) -> None:
    model, images = network("resnet18-w8"), images_of()
    expected = FrozenView(model)(images)
    assert torch.equal(FrozenView(model.to(memory_format=layout))(images), expected)


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "modes": [module.training for module in model.modules()],
        "state": {key: value.clone() for key, value in model.state_dict().items()},
        "addresses": [value.data_ptr() for value in model.state_dict().values()],
        "gradients": [
            (id(p.grad), None if p.grad is None else p.grad.clone(), p.requires_grad)
            for p in model.parameters()
        ],
        "hooks": [list(module._forward_hooks) for module in model.modules()],
        "random": torch.get_rng_state(),
    }


def assert_same(before: Any, after: Any) -> None:
    assert type(before) is type(after)
    if isinstance(before, Tensor):
        assert torch.equal(before, after)
    elif isinstance(before, dict):
        assert list(before) == list(after)
        for key in before:
            assert_same(before[key], after[key])
    elif isinstance(before, list | tuple):
        assert len(before) == len(after)
        for first, second in zip(before, after, strict=True):
            assert_same(first, second)
    else:
        assert before == after


def test_the_live_model_keeps_no_trace() -> None:
    model, images = network("preactresnet18-w8").train(), images_of().requires_grad_()
    model.layer2.eval()
    model(images).sum().backward()
    images.grad = None
    calls: list[int] = []
    handle = model.layer1.register_forward_hook(lambda *_: calls.append(1))
    before = snapshot(model)
    view = FrozenView(model)
    torch.autograd.grad(view(images).sum(), images)
    view(images).sum().backward()
    view.refresh()
    view.logits_and_features(images)
    assert_same(before, snapshot(model))
    assert calls == []
    assert all(parameter.grad is None for parameter in view.parameters())
    assert not any(ours is theirs for ours in view.parameters() for theirs in model.parameters())
    handle.remove()


class Foreign(nn.Module):
    """Somebody's network: norms of all kinds, tied weights, a buffer, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.plain_norm = nn.BatchNorm2d(8, affine=False)
        self.batch_norm = nn.BatchNorm2d(8, track_running_stats=False)
        self.group_norm = nn.GroupNorm(2, 8)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.vector_norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, images: Tensor) -> Tensor:
        out = self.batch_norm(self.plain_norm(torch.relu(self.norm(self.conv(images)))))
        out = self.dropout(self.group_norm(out).mean(dim=(2, 3)))
        return self.second(self.vector_norm(torch.relu(self.first(out)))) * self.steps


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-3), (torch.float64, 1e-12)])
def test_any_module_can_be_frozen(dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    model = randomise_norms(Foreign()).to(dtype)
    images = images_of(dtype=dtype)
    view = frozen(model)
    assert model.training
    assert relative(view(images), copy.deepcopy(model).eval()(images)) < bound
    assert sum(isinstance(module, ChannelAffine) for module in view.modules()) == 3
    assert view.pooled_head() is None
    with torch.no_grad():
        model.first.weight.mul_(-1)
        model.vector_norm.running_mean.add_(1)
    view.refresh()
    assert relative(view(images), model.eval()(images)) < bound
    with pytest.raises(UserError, match="Foreign has no feature map"):
        view.logits_and_features(images)


def test_hooks_of_foreign_modules_may_be_their_computation() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    model.register_forward_hook(lambda module, inputs, output: 2 * output)
    images = torch.rand(2, 3, 2, 2)
    torch.testing.assert_close(FrozenView(model)(images), model(images))


def test_a_convolution_with_bias_and_a_custom_head_fold_too() -> None:
    class Small(Network):
        def __init__(self) -> None:
            super().__init__("small", 2)
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.linear = nn.Linear(4, 2)

        def forward_features(self, images: Tensor) -> Tensor:
            return torch.relu(self.norm(self.conv(images)))

        def forward_head(self, features: Tensor) -> Tensor:
            return self.linear(features.amax(dim=(2, 3)))

        def conv_norm_pairs(self) -> list[tuple[str, str]]:
            return [("conv", "norm")]

    torch.manual_seed(0)
    model, images = randomise_norms(Small()).eval(), images_of()
    assert relative(FrozenView(model)(images), model(images)) < 1e-5
    logits, features = FrozenView(model, dtype=torch.bfloat16).logits_and_features(images)
    assert logits.dtype == features.dtype == torch.float32
    assert relative(logits, model(images)) < 0.05


def test_pooled_heads_of_the_view_describe_its_head() -> None:
    for name in ("resnet8-s2", "preactresnet18-w8", "wrn-10-1"):
        view = FrozenView(network(name))
        head = view.pooled_head()
        assert isinstance(head, PooledHead)
        features = view.forward_features(images_of())
        torch.testing.assert_close(head(features), view.forward_head(features))


def test_wrappers_of_several_processes_and_compilation_are_taken_off() -> None:
    model, images = network("resnet8-s2").eval(), images_of()
    expected = FrozenView(model)(images)
    assert torch.equal(FrozenView(nn.DataParallel(model))(images), expected)
    compiled = torch.compile(model, backend="eager")  # only unwrapped here, so any backend will do
    assert torch.equal(FrozenView(compiled)(images), expected)  # type: ignore[arg-type]


def test_a_compiled_view_is_one_graph_that_follows_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    without_compiler = functools.partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", without_compiler)
    model, images = network("wrn-10-1").eval(), images_of().requires_grad_()
    view, eager = FrozenView(model, compile=True), FrozenView(model)
    for _ in range(2):
        torch.testing.assert_close(view(images), eager(images))
        features = view.logits_and_features(images)[1]
        torch.testing.assert_close(features, eager.forward_features(images))
        gradients = [torch.autograd.grad(net(images).sum(), images)[0] for net in (view, eager)]
        torch.testing.assert_close(gradients[0], gradients[1])
        with torch.no_grad():
            model.conv1.weight.neg_()
        view.refresh()
        eager.refresh()


def test_weight_averages_are_taken_out_of_their_wrapper() -> None:
    model, images = network("resnet8-s2").eval(), images_of()
    view = FrozenView(torch.optim.swa_utils.AveragedModel(model))
    assert torch.equal(view(images), FrozenView(model)(images))
    assert view.pooled_head() is not None


def test_frozen_returns_views_and_functions_as_they_are() -> None:
    view = FrozenView(network("resnet8-s2"))
    assert frozen(view) is view
    assert frozen(images_of) is images_of
    assert isinstance(frozen(network("resnet8-s2")), FrozenView)
    assert frozen(network("resnet8-s2"), dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(UserError, match="not str"):
        frozen("resnet18")
    with pytest.raises(UserError, match=r"torch\.float16"):
        FrozenView(network("resnet8-s2"), dtype=torch.float16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views_live_where_the_model_lives(dtype: torch.dtype) -> None:
    model, images = network("wrn-10-1").cuda().eval(), images_of().cuda()
    view = FrozenView(model, dtype=dtype)
    assert {value.device.type for value in view.state_dict().values()} == {"cuda"}
    assert relative(view(images), model(images)) < (0.05 if dtype == torch.bfloat16 else 1e-3)
    view.refresh()


def test_a_compiled_view_sees_one_batch_size() -> None:
    sizes = []

    def run(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(images))
        return images.sum(dim=(1, 2, 3)), images * 2

    call = of_one_size(run)
    for count in (4, 3, 4, 1, 5):
        images = torch.rand(count, 3, 2, 2, requires_grad=True)
        total, doubled = call(images)
        assert torch.equal(doubled, images * 2)
        (gradient,) = torch.autograd.grad(total.sum(), images)
        assert torch.equal(gradient, torch.ones_like(images))
    assert sizes == [4, 4, 4, 4, 5]
    plain = of_one_size(lambda images: images.flatten(1))
    assert [plain(torch.rand(n, 3, 2, 2)).shape for n in (3, 2)] == [(3, 12), (2, 12)]
