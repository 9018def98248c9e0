"""Class activation maps against hand-written oracles, autograd, finite differences and the official maps."""

from __future__ import annotations

import functools
from typing import cast

import golden
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robust_core.cam import (
    CAM_METHODS,
    CamResult,
    cam_of_features,
    class_activation_map,
    feature_gradient,
    normalize_map,
)
from robust_core.errors import UserError
from robust_core.models import FrozenView, Network, PooledHead, build_model

ARCHITECTURES = [
    ("resnet8-s2", 32),
    ("resnet18-w8", 64),
    ("preactresnet18-w8", 32),
    ("preactresnet18-w8", 64),
    ("wrn-10-1", 32),
]


def network(name: str, size: int = 32) -> Network:
    """A network in float64 with random norms, so that scales, signs and gates all matter."""
    model = build_model(name, 6, image_size=size, seed=0).double()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.4, 1.6),
                (module.weight.data, -1.0, 1.5),
                (module.bias.data, -0.4, 0.4),
            ):
                cast(Tensor, tensor).uniform_(low, high, generator=generator)
    return model.eval()


def images_of(size: int = 32, count: int = 4) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)).double()


def oracle(model: Network, image: Tensor, method: str, class_index: int | None) -> tuple[Tensor, int]:
    """The definition, one image and one channel at a time, with the gradient from autograd."""
    features = model.forward_features(image.unsqueeze(0)).detach().requires_grad_()
    logits = model.forward_head(features)
    chosen = int(logits.argmax()) if class_index is None else class_index
    (gradient,) = torch.autograd.grad(logits[0, chosen], features)
    total = torch.zeros(features.shape[2:], dtype=features.dtype)
    for channel, slope in zip(features[0].detach(), gradient[0], strict=True):
        if method == "gradcam":
            term = slope.mean() * channel
        elif method == "xgradcam":
            term = (slope * channel).sum() / channel.sum() * channel
        else:
            term = slope.clamp(min=0) * channel
        total += torch.zeros_like(term) if term.isnan().any() else term
    return total.clamp(min=0), chosen


@pytest.mark.parametrize(("name", "size"), ARCHITECTURES)
@pytest.mark.parametrize("method", CAM_METHODS)
@pytest.mark.parametrize("given", [False, True])
def test_maps_follow_the_definition(name: str, size: int, method: str, given: bool) -> None:
    model, images = network(name, size), images_of(size)
    classes = torch.tensor([0, 5, 2, 2]) if given else None
    result = class_activation_map(model, images, method=method, classes=classes)
    assert isinstance(result, CamResult)
    for index, image in enumerate(images):
        expected, chosen = oracle(model, image, method, int(classes[index]) if given else None)
        assert result.classes[index] == chosen
        torch.testing.assert_close(result.maps[index], expected, rtol=1e-9, atol=1e-10)
    assert result.maps.max() > 0
    torch.testing.assert_close(result.logits, model(images))
    torch.testing.assert_close(result.features, model.forward_features(images))
    assert not any(tensor.requires_grad for tensor in result)


def test_a_map_worked_out_by_hand() -> None:
    """Two channels, 1x2 maps, global average pooling: the gradient is the weight divided by two."""

    class Tiny(Network):
        def __init__(self) -> None:
            super().__init__("tiny", 2)
            self.linear = nn.Linear(2, 2, bias=False)
            self.linear.weight.data = torch.tensor([[2.0, -4.0], [0.0, 1.0]])

        def forward_features(self, images: Tensor) -> Tensor:
            return images[:, :2]

        def pooled_head(self) -> PooledHead:
            return PooledHead(norm=None, relu=False, pool=None, linear=self.linear)

    images = torch.tensor([[[[0.5, 1.0]], [[0.25, 0.0]], [[0.9, 0.9]]]])
    for method, expected in (("gradcam", [0.0, 1.0]), ("xgradcam", [0.0, 1.0]), ("layercam", [0.5, 1.0])):
        result = class_activation_map(Tiny(), images, method=method)
        assert result.classes.tolist() == [0]
        assert result.maps.tolist() == [[expected]]


@pytest.mark.parametrize(("name", "size"), ARCHITECTURES)
def test_closed_form_equals_autograd(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    view = FrozenView(network(name, size))
    logits, features = view.logits_and_features(images_of(size))
    classes = torch.tensor([1, 0, 5, 3])
    closed = feature_gradient(view, features, classes).expand_as(features)
    maps = [cam_of_features(view, features, logits, method=method) for method in CAM_METHODS]
    monkeypatch.setattr(FrozenView, "pooled_head", lambda self: None)
    by_autograd = feature_gradient(view, features, classes)
    torch.testing.assert_close(closed, by_autograd, rtol=1e-12, atol=1e-15)
    for method, closed_map in zip(CAM_METHODS, maps, strict=True):
        expected = cam_of_features(view, features, logits, method=method)
        torch.testing.assert_close(closed_map, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("size", [5, 6])
def test_what_the_pooling_window_leaves_out_has_no_gradient(size: int) -> None:
    class Odd(Network):
        def __init__(self) -> None:
            super().__init__("odd", 3)
            self.linear = nn.Linear(4 * (size // 2) ** 2, 3).double()

        def forward_features(self, images: Tensor) -> Tensor:
            return images

        def pooled_head(self) -> PooledHead:
            return PooledHead(norm=None, relu=True, pool=2, linear=self.linear)

    model = Odd()
    features = torch.randn(2, 4, size, size, dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([2, 0])
    chosen = model.forward_head(features).gather(1, classes.unsqueeze(1)).sum()
    (expected,) = torch.autograd.grad(chosen, features)
    torch.testing.assert_close(feature_gradient(model, features, classes), expected)


@pytest.mark.parametrize("name", ["resnet8-s2", "preactresnet18-w8", "wrn-10-1"])
def test_gradients_agree_with_finite_differences(name: str) -> None:
    view = FrozenView(network(name))
    features = view.forward_features(images_of(count=2)).detach()
    classes = torch.tensor([4, 1])
    direction = torch.randn(features.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    step = 1e-7 * direction
    difference = (view.forward_head(features + step) - view.forward_head(features - step)) / 2e-7
    slope = (feature_gradient(view, features, classes) * direction).sum(dim=(1, 2, 3))
    torch.testing.assert_close(slope, difference[torch.arange(2), classes].detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", CAM_METHODS)
@pytest.mark.parametrize("name", ["resnet8-s2", "wrn-10-1"])
def test_a_batch_equals_its_images_one_by_one(name: str, method: str) -> None:
    view, images = FrozenView(network(name)), images_of()
    together = class_activation_map(view, images, method=method).maps
    alone = [class_activation_map(view, image.unsqueeze(0), method=method).maps for image in images]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-12)
    assert class_activation_map(view, images[:0], method=method).maps.shape == (0, *together.shape[1:])


def test_gradcam_and_xgradcam_coincide_behind_global_average_pooling() -> None:
    view, images = FrozenView(network("resnet8-s2")), images_of()
    first, second = (class_activation_map(view, images, method=method).maps for method in CAM_METHODS[:2])
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_precision_of_the_view_decides_the_type_of_the_maps(dtype: torch.dtype) -> None:
    result = class_activation_map(FrozenView(network("wrn-10-1"), dtype=dtype), images_of())
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert result.maps.dtype == result.features.dtype == result.logits.dtype == expected
    reference = class_activation_map(network("wrn-10-1"), images_of(), classes=result.classes).maps
    bound = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float64: 1e-12}[dtype]
    assert (result.maps - reference).abs().max() < bound * reference.max()


def test_a_dead_channel_is_left_out_of_xgradcam() -> None:
    view = FrozenView(network("resnet8-s2"))
    logits, features = view.logits_and_features(images_of())
    features = features.detach()
    features[:, ::3] = 0
    maps = cam_of_features(view, features, logits, method="xgradcam")
    assert maps.isfinite().all()
    torch.testing.assert_close(maps, cam_of_features(view, features, logits, method="gradcam"))


def test_normalised_maps_reach_from_zero_to_one_and_constant_ones_are_zero() -> None:
    maps = torch.stack(
        [torch.rand(4, 4), torch.full((4, 4), 3.0), torch.zeros(4, 4), 1e-6 * torch.rand(4, 4)]
    )
    normalised = normalize_map(maps)
    assert normalised.amin(dim=(1, 2)).tolist() == [0, 0, 0, 0]
    assert normalised.amax(dim=(1, 2)).tolist() == [1, 0, 0, 1]
    expected = (maps[0] - maps[0].min()) / (maps[0] - maps[0].min()).max()
    assert torch.equal(normalised[0], expected)


@pytest.mark.parametrize("frozen_first", [False, True])
@pytest.mark.parametrize("closed_form", [False, True])
def test_the_network_keeps_no_trace(
    frozen_first: bool, closed_form: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = network("preactresnet18-w8").train(), images_of()
    model.layer3.eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    if not closed_form:
        monkeypatch.setattr(FrozenView, "pooled_head", lambda self: None)
    subject: nn.Module = FrozenView(model) if frozen_first else model
    for method in CAM_METHODS:
        class_activation_map(subject, images, method=method)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in subject.parameters())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_map_is_that_of_evaluation_mode_whatever_the_mode() -> None:
    model, images = network("wrn-10-1"), images_of()
    expected = class_activation_map(model.eval(), images).maps
    assert torch.equal(class_activation_map(model.train(), images).maps, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "grad-cam"}, "Unknown class activation map 'grad-cam'; did you mean 'gradcam'"),
        ({"classes": torch.tensor([0, 1, 2])}, r"shape \(3,\).*give 4 integers"),
        ({"classes": torch.zeros(4)}, "type torch.float32"),
        ({"classes": torch.tensor([0, 1, 2, 6])}, "classes reach from 0 to 6.* 0 to 5"),
        ({"classes": torch.tensor([0, -1, 2, 3])}, "classes reach from -1 to 3"),
        ({"classes": [0, 1, 2, 3]}, "classes is list; give 4 integers"),
        ({"classes": torch.ones(4, dtype=torch.bool)}, "type torch.bool"),
        ({"images": 255 * images_of()}, r"lie in .*expected \[0, 1\]: divide 8-bit images by 255"),
        ({"images": torch.zeros(4, 3, 32, 32, dtype=torch.uint8)}, r"uint8: give float32"),
        ({"images": torch.full((4, 3, 32, 32), torch.nan)}, "images hold NaN"),
        ({"images": torch.zeros(4, 1, 32, 32)}, r"\(4, 1, 32, 32\), but resnet8-s2 takes \(N, 3, H, W\)"),
        ({"images": "cat.png"}, "images are str: give a tensor"),
        ({"method": None}, "Unknown class activation map 'None'"),
        ({"model": nn.Flatten()}, "Flatten has no feature map"),
        ({"model": lambda images: images}, "not a function of images"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments = {"model": network("resnet8-s2"), "images": images_of()} | change
    with pytest.raises(UserError, match=message):
        class_activation_map(**arguments)  # type: ignore[arg-type]
    if "method" in change:
        with pytest.raises(UserError, match=message):
            cam_of_features(FrozenView(network("resnet8-s2")), *[images_of()] * 2, method=change["method"])


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (torch.rand(4, 4), r"maps are shape \(4, 4\), expected a tensor \(N, h, w\).*maps\[None\]"),
        (torch.rand(2, 1, 4, 4), r"shape \(2, 1, 4, 4\).*without a channel axis"),
        (torch.rand(2, 0, 4), r"shape \(2, 0, 4\)"),
        (np.zeros((2, 4, 4)), "maps are ndarray"),
    ],
)
def test_what_is_no_batch_of_maps_is_refused(maps: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        normalize_map(maps)  # type: ignore[arg-type]


DTYPES = {"f32": torch.float32, "f64": torch.float64}


@functools.lru_cache(maxsize=2)  # networks are large
def golden_view(name: str, suffix: str) -> tuple[FrozenView, Tensor, Tensor]:
    view = FrozenView(golden.recipe_model(name, DTYPES[suffix]))
    images = torch.from_numpy(golden.load("part", "inputs.npz")["x"]).to(DTYPES[suffix])
    with torch.no_grad():
        return (view, *view.logits_and_features(images))


def rounding(view: FrozenView, features: Tensor, classes: Tensor, method: str) -> Tensor:
    """How much a relative rounding error of the features grows in a map, per image, relative to its maximum.

    Terms of both signs cancel in the sum over channels and, for XGrad-CAM, in its denominators.
    """
    gradient = feature_gradient(view, features, classes)
    size = features.abs()
    if method == "layercam":
        terms = gradient.abs() * size
        total = (gradient.clamp(min=0) * features).sum(1)
    elif method == "gradcam":
        terms = gradient.abs().mean((2, 3), keepdim=True) * size
        total = (gradient.mean((2, 3), keepdim=True) * features).sum(1)
    else:
        denominator = features.sum((2, 3), keepdim=True)
        weight = ((gradient * features).sum((2, 3), keepdim=True) / denominator).nan_to_num()
        slack = (gradient.abs() * size).sum((2, 3), keepdim=True) / denominator.abs()
        slack = slack + weight.abs() * size.sum((2, 3), keepdim=True) / denominator.abs()
        terms = slack.nan_to_num() * size
        total = (weight * features).sum(1)
    return terms.sum(1).amax((1, 2)) / total.clamp(min=0).amax((1, 2))


@pytest.mark.golden
@pytest.mark.parametrize(("name", "suffix"), golden.in_both_precisions(("resnet18", "wrn34_10")))
@pytest.mark.parametrize("method", CAM_METHODS)
def test_official_maps(name: str, method: str, suffix: str) -> None:
    official, key = golden.load("part", "cam.npz"), f"{name}_{method}"
    view, logits, features = golden_view(name, suffix)
    classes = torch.from_numpy(official[f"{key}_class"])
    assert torch.equal(logits.argmax(dim=1), classes)
    raw = cam_of_features(view, features, logits, method=method)
    heat = normalize_map(raw)
    reference = torch.from_numpy(official[f"{key}_cam_raw_{suffix}"])
    reference_heat = torch.from_numpy(np.nan_to_num(official[f"{key}_heatmap_{suffix}"]))
    # The unit is what the features may differ by. In float32 rounding decides some relu gates as well, and one
    # of them moves a map by about a thousandth.
    floor, unit = {"f32": (1e-3, 1e-5), "f64": (1e-10, 1e-14)}[suffix]
    bound = floor + unit * rounding(view, features, classes, method)
    off = (raw - reference).abs().amax((1, 2))
    assert (off <= bound * reference.amax((1, 2)).clamp(min=1e-30)).all()
    assert ((heat - reference_heat).abs().amax((1, 2)) <= 4 * bound).all()
