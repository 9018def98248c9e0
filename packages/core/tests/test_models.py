"""Architectures, registry, initialisation and the split into features and head."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from robust_core.errors import UserError
from robust_core.models import Network, build_model, list_models, load_state, registry

FEATURES = {
    # name, image size: shape of one image's feature map
    ("resnet18-w16", 32): (128, 4, 4),
    ("resnet18-w16", 64): (128, 8, 8),
    ("resnet34-w8", 32): (64, 4, 4),
    ("resnet50-w8", 32): (256, 4, 4),
    ("preactresnet18-w16", 32): (128, 4, 4),
    ("preactresnet18-w16", 64): (128, 8, 8),
    ("wrn-16-2", 32): (128, 8, 8),
    ("wrn-10-1", 64): (64, 16, 16),
    ("resnet8-s2", 32): (64, 4, 4),
}


@pytest.mark.parametrize(("name", "size"), FEATURES)
@pytest.mark.parametrize("training", [False, True])
def test_features_and_head_make_the_network(name: str, size: int, training: bool) -> None:
    model = build_model(name, 7, image_size=size, seed=0).train(training)
    images = torch.rand(2, 3, size, size)
    features = model.forward_features(images)
    kept = features.detach().clone()
    logits = model.forward_head(features)
    assert features.shape[1:] == FEATURES[name, size]
    assert logits.shape == (2, 7)
    assert torch.equal(features, kept), "the head must not write into the features"
    assert torch.equal(model(images), logits)
    logits.sum().backward()


def test_features_of_resnets_are_behind_the_relu_and_of_the_others_before_the_norm() -> None:
    images = torch.rand(4, 3, 32, 32)
    assert build_model("resnet8-s2", 10, seed=0).forward_features(images).min() >= 0
    for name in ("wrn-10-1", "preactresnet18-w16"):
        assert build_model(name, 10, seed=0).forward_features(images).min() < 0


@pytest.mark.parametrize("name", list_models())
def test_every_listed_name_builds(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, 10)
    assert isinstance(model, Network)
    assert model.name == name


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_173_962),
        ("wrn-28-10", 36_479_194),
        ("wrn-34-10", 46_160_474),
        ("resnet50", 23_520_842),
    ],
)
def test_sizes_are_those_of_the_literature(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build_model(name, 10)
    used = [p for key, p in model.named_parameters() if not key.startswith("sub_block1.")]
    assert sum(p.numel() for p in used) == parameters


@pytest.mark.parametrize("name", ["resnet8-s2", "preactresnet18-w16", "wrn-10-1"])
def test_a_seed_decides_the_weights_and_nothing_else(name: str) -> None:
    before = torch.get_rng_state()
    first, second, other = (build_model(name, 3, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    torch.default_generator.manual_seed(1)
    unseeded = build_model(name, 3).state_dict()
    assert all(torch.equal(first[key], unseeded[key]) for key in first)


def test_wide_resnets_start_with_fan_out() -> None:
    model = build_model("wrn-16-4", 10, seed=0)
    weight = model.get_parameter("block3.layer.1.conv1.weight")
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert model.get_parameter("fc.bias").abs().max() == 0


def test_the_unused_block_asks_for_no_gradient() -> None:
    model = build_model("wrn-10-1", 10, seed=0)
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    for name, parameter in model.named_parameters():
        unused = name.startswith("sub_block1.")
        assert parameter.requires_grad is not unused
        assert (parameter.grad is None) is unused, name


def test_normalisation_is_the_first_layer_and_not_in_the_state_dict() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    plain, normalised = (
        build_model("resnet8-s2", 10, seed=0),
        build_model("resnet8-s2", 10, mean=mean, std=std),
    )
    assert list(plain.state_dict()) == list(normalised.state_dict())
    load_state(normalised, plain.state_dict())
    images = torch.rand(3, 3, 32, 32)
    by_hand = (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(normalised.eval()(images), plain.eval()(by_hand))


@pytest.mark.parametrize(
    "name", ["resnet18-w16", "resnet50-w8", "preactresnet18-w16", "wrn-16-2", "wrn-10-1"]
)
def test_pairs_are_a_convolution_and_the_norm_that_it_feeds(name: str) -> None:
    """That it feeds nothing else shows where the folded network is compared with the network."""
    model = build_model(name, 5, seed=0).eval()
    outputs: dict[str, torch.Tensor] = {}
    fed: dict[str, torch.Tensor] = {}
    for conv, norm in model.conv_norm_pairs():
        model.get_submodule(conv).register_forward_hook(lambda m, i, o, key=conv: outputs.update({key: o}))
        model.get_submodule(norm).register_forward_pre_hook(lambda m, i, key=norm: fed.update({key: i[0]}))
    model(torch.rand(1, 3, 32, 32))
    assert len(model.conv_norm_pairs()) == len(set(model.conv_norm_pairs())) > 0
    assert all(outputs[conv] is fed[norm] for conv, norm in model.conv_norm_pairs())


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UserError, match=r"Unknown model 'resnet19'; did you mean 'resnet18'\?"):
        build_model("resnet19", 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "wrn-33-10"}, r"wrn-33-10 .* 6n \+ 4"),
        ({"name": "wrn-28-0"}, "at least 1"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"image_size": 30}, "image_size is 30"),
        ({"mean": (0.5, 0.5, 0.5)}, "both mean and std"),
        ({"mean": 0.5, "std": 0.2}, "mean is 0.5 and std 0.2; expected three numbers each"),
        ({"mean": "abc", "std": (0.2, 0.2, 0.2)}, "mean is abc and std"),
        ({"mean": (0.5, 0.5, float("nan")), "std": (0.2, 0.2, 0.2)}, "expected three numbers each"),
        ({"name": None}, "model's name is None, expected a string"),
        ({"num_classes": "10"}, "num_classes is '10', expected a whole number"),
        ({"num_classes": 10.0}, "num_classes is 10.0, expected a whole number"),
        ({"num_classes": 10**12}, "num_classes is 1000000000000, expected at most 1000000"),
        ({"image_size": "32"}, "image_size is '32', expected a whole number"),
        ({"image_size": 32 * 10**6}, "image_size is 32000000, expected at most 2048"),
        ({"seed": 1.5}, "seed is 1.5, expected a whole number"),
        ({"seed": True}, "seed is True, expected a whole number"),
        ({"seed": 10**30}, "seed is 1000000000000000000000000000000, expected at most"),
        ({"name": "resnet18-w99999999"}, "'resnet18-w99999999' has width 99999999, expected at most 1024"),
        ({"name": "preactresnet18-w1025"}, "has width 1025, expected at most 1024"),
        ({"name": "wrn-40-99999999999"}, "has width 99999999999, expected at most 160"),
        ({"name": "wrn-10000000-1"}, "has depth 10000000, expected at most 1000"),
        ({"name": "wrn-40-" + "9" * 5000}, r"'wrn-40-9{53}\.\.\.' has width 9{20}, expected at most 160"),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.0, 0.2)}, "every std above 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    settings = {"name": "resnet8-s2", "num_classes": 10} | arguments
    with pytest.raises(UserError, match=message):
        build_model(**settings)  # type: ignore[arg-type]


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    ours = build_model("resnet8-s2", np.int64(3), image_size=np.int32(32), seed=np.int64(1))  # type: ignore[arg-type]
    assert torch.equal(ours.linear.weight, build_model("resnet8-s2", 3, seed=1).linear.weight)


def test_a_bare_network_says_what_it_lacks() -> None:
    bare = Network("bare", 2)
    assert bare.pooled_head() is None
    assert bare.conv_norm_pairs() == []
    with pytest.raises(NotImplementedError):
        bare.forward_features(torch.rand(1, 3, 32, 32))
    with pytest.raises(NotImplementedError):
        bare.forward_head(torch.rand(1, 3, 4, 4))


def test_examples_in_docstrings_run() -> None:
    assert doctest.testmod(registry).failed == 0
