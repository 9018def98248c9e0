"""Attacks under a budget from the class activation map: one natural pass for everything."""

import pytest
import torch
import torch.nn.functional as F
from small_nets import ConvNet

from robust_core.attacks import mma, mma_under_cam, pgd, pgd_under_cam
from robust_core.cam import class_activation_map, normalize_map
from robust_core.errors import UserError
from robust_core.models import FrozenView, build_model

STEPS = {"step_size": 0.01, "steps": 3}


def problem(count=4):
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return build_model("resnet8-s2", 5, seed=0), images, torch.arange(count)


def budget(cam):
    """Two budgets, by how strongly a pixel speaks for the class."""
    heat = F.interpolate(normalize_map(cam.maps)[:, None], size=32, mode="bilinear")
    return torch.where(heat > 0.5, 8 / 255, 4 / 255)


@pytest.mark.parametrize("method", ["gradcam", "xgradcam", "layercam"])
@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_pgd_equals_its_parts(method, loss):
    net, images, labels = problem()
    result = pgd_under_cam(net, images, labels, budget=budget, cam_method=method, loss=loss, **STEPS)
    cam = class_activation_map(net, images, method=method)
    assert torch.allclose(result.cam.maps, cam.maps, atol=1e-5)
    assert torch.equal(result.eps, budget(result.cam))
    parts = pgd(FrozenView(net), images, labels, eps=result.eps, loss=loss, **STEPS)
    assert torch.allclose(result.images, parts, atol=1e-6)
    offset = (result.images - images).abs()
    assert (offset <= result.eps + 1e-7).all()
    assert (offset > 4 / 255 + 1e-6).any()


def test_mma_equals_its_parts():
    net, images, labels = problem()
    result = mma_under_cam(net, images, labels, budget=budget, **STEPS)
    assert torch.allclose(result.images, mma(net, images, labels, eps=result.eps, **STEPS), atol=1e-6)


@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_there_is_one_natural_pass(loss, monkeypatch):
    net, images, labels = problem()
    view, passes = FrozenView(net), []
    inner = view.forward_features
    monkeypatch.setattr(view, "forward_features", lambda x: (passes.append(x.requires_grad), inner(x))[1])
    pgd_under_cam(view, images, labels, budget=budget, loss=loss, **STEPS)
    assert passes == [False, True, True, True]


def test_the_class_of_the_map_can_be_given():
    net, images, labels = problem()
    seen = []
    pgd_under_cam(
        net, images, labels, budget=lambda cam: seen.append(cam) or 0.01, cam_classes=labels, **STEPS
    )
    assert torch.equal(seen[0].classes, labels)
    assert torch.allclose(seen[0].maps, class_activation_map(net, images, classes=labels).maps, atol=1e-5)


def test_a_constant_budget_is_plain_pgd():
    net, images, labels = problem()
    found = pgd_under_cam(net, images, labels, budget=lambda cam: 0.02, keep="best", restarts=2, **STEPS)
    assert torch.equal(found.images, pgd(net, images, labels, eps=0.02, keep="best", restarts=2, **STEPS))


def test_mistakes_are_told():
    _, images, labels = problem()
    with pytest.raises(UserError, match="eps has shape"):
        pgd_under_cam(ConvNet(), images, labels, budget=lambda cam: cam.maps, **STEPS)
    with pytest.raises(UserError, match="Unknown class activation map 'grad-cam'"):
        pgd_under_cam(ConvNet(), images, labels, budget=budget, cam_method="grad-cam", **STEPS)
