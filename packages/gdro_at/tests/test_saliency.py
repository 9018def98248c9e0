import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from purity import unchanged
from torch import nn

from gdro_at.networks import build_network
from gdro_at.published_saliency import (
    published_attack_saliency,
    published_natural_cam,
    published_natural_cam_pp,
    published_overlay,
)
from gdro_at.saliency import attack_saliency, enlarged, grad_cam, grad_cam_pp
from gdro_at.tap import TappedNetwork, layer_name
from robust_core.cam import class_activation_map, normalize_map
from robust_core.errors import UserError

METHODS = ("attack", "attack of a class", "cam", "cam++")


class Linear(nn.Module):
    """A convolution, the mean of its map, a linear layer: all gradients can be written down."""

    def __init__(self, classes=3, channels=5, factor=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.conv = nn.Conv2d(3, channels, 3, 2, 1)
        self.idle = nn.Conv2d(3, 3, 1)
        self.relu = nn.ReLU(inplace=True)
        self.twice = nn.Identity()
        self.fc = nn.Linear(channels, classes)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            self.fc.weight.mul_(factor)

    def forward(self, images):
        return self.fc(self.twice(self.twice(self.relu(self.conv(images)))).mean((2, 3)))


def network(name="resnet18-w8", classes=3, seed=0):
    model = build_network(name, classes, image_size=32, mean=None, std=None, seed=seed)
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def batch(count=4, size=32, classes=3, eps=0.03, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(count, 3, size, size, generator=generator).to(dtype)
    noise = eps * torch.randn(images.shape, generator=generator).sign()
    return images, (images + noise).clamp(0, 1).to(dtype), torch.arange(count) % classes


def of(method, model, images, adversarial, labels, layer="layer2"):
    if method == "cam":
        return grad_cam(model, adversarial, labels, layer)
    if method == "cam++":
        return grad_cam_pp(model, adversarial, labels, layer)
    return attack_saliency(
        model, images, adversarial, layer, labels=labels if method == "attack of a class" else None
    )


@pytest.mark.parametrize("method", METHODS)
def test_maps_by_hand(method):
    model = Linear().double().eval()
    images, adversarial, labels = batch(size=12, dtype=torch.float64)
    with torch.no_grad():
        before = model.conv(adversarial)
        natural, attacked = model(images).softmax(1), model(adversarial).softmax(1)
    # of the logits, then of the map before the relu, whose mean the head takes
    chosen = F.one_hot(labels, 3).double()
    of_logits = {"attack": attacked - natural, "attack of a class": attacked - chosen}.get(method, chosen)
    gradient = (of_logits @ model.fc.weight.detach())[:, :, None, None] * (before > 0) / before[0, 0].numel()
    if method == "cam++":
        divisor = 2 * gradient**2 + (before * gradient**3).sum((2, 3), keepdim=True)
        weights = (torch.where(divisor != 0, gradient**2 / divisor, 0.0) * gradient.relu()).sum((2, 3))
    else:
        weights = gradient.mean((2, 3))
    raw = (weights[:, :, None, None] * before).sum(1).relu()
    found = of(method, model, images, adversarial, labels, "conv")
    torch.testing.assert_close(found.weights, weights)
    torch.testing.assert_close(found.raw, raw)
    large = F.interpolate(raw[:, None], size=(12, 12), mode="bilinear")[:, 0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    torch.testing.assert_close(found.maps, ((large - low) / (high - low)).nan_to_num(0.0))
    divergence = (natural * (natural.log() - attacked.log())).sum(1)
    fallen = (natural.log() - attacked.log())[range(4), labels]
    score = {"attack": divergence, "attack of a class": fallen}.get(
        method, model(adversarial)[range(4), labels]
    )
    torch.testing.assert_close(found.scores, score.detach())


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_gives_what_its_images_give(method):
    model = network().double()
    images, adversarial, labels = batch(dtype=torch.float64)
    whole = of(method, model, images, adversarial, labels)
    for number in range(len(images)):
        one = slice(number, number + 1)
        alone = of(method, model, images[one], adversarial[one], labels[one])
        torch.testing.assert_close(alone.maps, whole.maps[one], rtol=0, atol=1e-9)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_the_model_changes(method, training):
    model = network().train(training)
    images, adversarial, labels = batch()
    F.cross_entropy(model(images), labels).backward()
    model.conv1.register_forward_hook(lambda *_: None)
    plain = network()
    plain.load_state_dict(model.state_dict())
    with unchanged(model):
        found = of(method, model, images, adversarial, labels)
    # always in evaluation mode
    torch.testing.assert_close(found.maps, of(method, plain, images, adversarial, labels).maps)
    assert not any(part.requires_grad for part in found)
    with unchanged(model), pytest.raises(UserError):
        of(method, model, images, adversarial, labels, "linear")


def test_published_natural_maps_change_nothing_either():
    model = network().train()
    images, _, labels = batch()
    with unchanged(model):
        maps, _ = published_natural_cam(model, images, labels, "layer1")
        large = published_natural_cam_pp(model, images, labels, "layer1")
    assert maps.shape == (4, 32, 32)
    assert large.shape == (4, 224, 224)


def test_the_last_stage_gives_the_cores_map():
    model = network()
    images, _, labels = batch()
    core = class_activation_map(model, images, classes=labels).maps
    torch.testing.assert_close(grad_cam(model, images, labels, "layer4").raw, core, rtol=1e-4, atol=1e-5)


def test_an_image_that_was_not_attacked_has_no_map():
    model = network()
    images, adversarial, labels = batch()
    mixed = torch.where(torch.arange(4).view(-1, 1, 1, 1) < 2, images, adversarial)
    maps = attack_saliency(model, images, mixed, "layer2").maps
    assert maps[:2].abs().max() == 0
    assert maps[2:].max() == 1
    # the class may be talked down all the same
    assert attack_saliency(model, images, images, "layer2", labels).maps.max() == 1


def test_of_two_classes_the_divergence_and_the_falling_class_agree():
    model = network(classes=2).double()
    images, adversarial, labels = batch(classes=2, dtype=torch.float64)
    whole, single = (attack_saliency(model, images, adversarial, "layer2", given) for given in (None, labels))
    fell = single.scores > 0
    assert fell.any()
    torch.testing.assert_close(whole.maps[fell], single.maps[fell], rtol=1e-6, atol=1e-9)


def test_the_size_of_the_logits_leaves_grad_cam_as_it_is():
    images, _, labels = batch(size=16)
    small, large = (grad_cam(Linear(factor=factor), images, labels, "conv").maps for factor in (1.0, 64.0))
    torch.testing.assert_close(small, large)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15, deadline=None)
@given(factor=st.sampled_from([0.0, 1e-20, 1e-4, 1.0, 1e4, 1e15]), value=st.floats(0, 1))
def test_maps_lie_in_the_unit_interval_whatever_the_network(method, factor, value):
    images, adversarial, labels = batch(size=8)
    images = torch.where(images > value, images, value)
    found = of(method, Linear(factor=factor), images, adversarial, labels, "conv").maps
    assert found.isfinite().all()
    assert found.min() >= 0
    assert found.max() <= 1


def test_a_map_without_positive_part_is_zero_and_nan_as_published():
    model = Linear(factor=0.0)
    images, adversarial, labels = batch(size=8)
    for method in METHODS:
        assert of(method, model, images, adversarial, labels, "conv").maps.abs().max() == 0
    assert published_natural_cam(model, images, labels, "conv")[0].isnan().all()
    assert published_natural_cam_pp(model, images, labels, "conv").isnan().all()
    assert published_attack_saliency(model, images, adversarial, "conv").maps.isnan().all()
    heat, _ = published_overlay(torch.full((1, 8, 8), torch.nan), images[:1])
    assert (heat[0, :, 0, 0] == torch.tensor([0, 0, 128])).all()


def test_the_published_saliency_moves_statistics_three_times_an_image():
    model, one_by_one = network(), network()
    images, adversarial, _ = batch()
    found = published_attack_saliency(model, images, adversarial, "layer2")
    assert model.training
    assert model.bn1.num_batches_tracked == 3 * len(images)
    # one image after the other on the same network, whose training statistics are each image's own
    rows = [
        published_attack_saliency(one_by_one, images[i : i + 1], adversarial[i : i + 1], "layer2").maps
        for i in range(len(images))
    ]
    torch.testing.assert_close(found.maps, torch.cat(rows))
    assert torch.equal(model.bn1.running_mean, one_by_one.bn1.running_mean)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("layer1", "layer1"),
        ("layer2_1", "layer2.1"),
        ("layer3_0_conv1", "layer3.0.conv1"),
        ("layer2.1", "layer2.1"),
    ],
)
def test_layers_by_name(written, meant):
    assert layer_name(network(), written) == meant


def test_the_last_block_of_a_stage_is_the_stage():
    model = network()
    images, _, labels = batch()
    stage, block = (grad_cam(model, images, labels, layer).maps for layer in ("layer2", "layer2_1"))
    assert torch.equal(stage, block)


def test_a_layer_that_a_relu_overwrites_is_seen_before():
    model = Linear().eval()
    images, _, _ = batch(size=8)
    _, found = TappedNetwork(model, "conv")(images)
    assert (found < 0).any()
    assert torch.equal(found, model.conv(images))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer22", "did you mean"),
        ("fc", r"gives \(4, 3\), expected a map"),
        ("twice", "runs 2 times"),
        ("idle", "runs 0 times"),
    ],
)
def test_layers_that_cannot_be_shown(layer, message):
    model = network() if layer == "layer22" else Linear()
    images, _, labels = batch()
    with pytest.raises(UserError, match=message):
        grad_cam(model, images, labels, layer)


def test_arguments_that_do_not_fit():
    model = Linear()
    images, adversarial, labels = batch(size=8)
    with pytest.raises(UserError, match="expected \\[0, 1\\]"):
        grad_cam(model, images - 1, labels, "conv")
    with pytest.raises(UserError, match="expected \\[0, 1\\]"):
        attack_saliency(model, images, adversarial + 1, "conv")
    with pytest.raises(UserError, match="expected \\(N, 3, H, W\\)"):
        grad_cam(model, images[0], labels, "conv")
    with pytest.raises(UserError, match="same batch"):
        attack_saliency(model, images, adversarial[:2], "conv")
    with pytest.raises(UserError, match="4 integers"):
        grad_cam(model, images, labels[:2], "conv")
    with pytest.raises(UserError, match="labels reach from 0 to 7"):
        attack_saliency(model, images, adversarial, "conv", labels + torch.tensor([0, 0, 0, 7]))


def test_a_map_is_enlarged_with_half_pixel_centres():
    raw = torch.tensor([[[0.0, 1.0]]])
    expected = torch.tensor([0.0, 0.25, 0.75, 1.0]).expand(2, 4)
    torch.testing.assert_close(normalize_map(enlarged(raw, (2, 4)))[0], expected)
