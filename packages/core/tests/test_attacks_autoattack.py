"""The adapter of pyautoattack: what it runs, reports and leaves alone."""

import logging
import sys
import types

import pytest
import torch
from small_nets import ConvNet, prototypes, trained_net

from robust_core.attacks import autoattack, autoattack_available
from robust_core.attacks import autoattack as adapter_function
from robust_core.errors import UserError

adapter = sys.modules[adapter_function.__module__]
pytestmark = pytest.mark.usefixtures("one_thread")
needs_package = pytest.mark.skipif(not autoattack_available(), reason="needs pyautoattack (the extra 'eval')")


def some_images(count=12, classes=6):
    images, labels = prototypes(count, 77)
    return images, labels % classes


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(adapter, "autoattack_available", lambda: False)
    with pytest.raises(UserError, match=r"needs the package pyautoattack.*extra 'eval'"):
        autoattack(ConvNet(6), *some_images(), eps=0.1)


def test_bad_arguments_are_told():
    images, labels = some_images()
    with pytest.raises(UserError, match="one eps for all images: give a number"):
        autoattack(ConvNet(6), images, labels, eps=torch.full((12,), 0.1))
    with pytest.raises(UserError, match="Unknown AutoAttack version 'standrad'; did you mean 'standard'"):
        autoattack(ConvNet(6), images, labels, eps=0.1, version="standrad")
    with pytest.raises(UserError, match="batch_size is 0"):
        autoattack(ConvNet(6), images, labels, eps=0.1, batch_size=0)


@needs_package
def test_a_run_reports_its_members_and_messages():
    net, (images, labels) = trained_net(), some_images()
    lines = []
    logger = logging.getLogger("auto-attack")
    before = logger.level, logger.propagate, list(logger.handlers), sys.gettrace()
    result = autoattack(net, images, labels, eps=0.3, log=lines.append)
    assert (logger.level, logger.propagate, list(logger.handlers), sys.gettrace()) == before
    assert result.members == ("apgd-ce", "apgd-t", "fab-t", "square")
    assert result.skipped == ()
    assert result.flags == ()
    assert any("robust accuracy" in line for line in lines)
    assert (net(result.images).argmax(1) != labels).all()
    assert (result.images - images).abs().max() <= 0.3 + 1e-6


@needs_package
@pytest.mark.parametrize(("classes", "members"), [(2, 3), (3, 3), (4, 4)])
def test_few_classes_leave_out_what_needs_more(classes, members):
    images, labels = some_images(4, classes)
    result = autoattack(ConvNet(classes), images, labels, eps=1.0)
    assert len(result.members) == members
    if classes < 4:
        assert result.skipped == (f"apgd-t needs 4 classes, the model has {classes}",)
    else:
        assert result.skipped == ()


@needs_package
def test_the_packages_warnings_are_reported():
    class Probabilities(ConvNet):
        def forward_head(self, features):
            return super().forward_head(features).softmax(1)

    result = autoattack(Probabilities(6), *some_images(4), eps=1.0)
    assert any("probability distribution" in flag for flag in result.flags)


@needs_package
def test_the_generator_gives_the_seed():
    net, (images, labels) = trained_net(), some_images(40)
    runs = [
        autoattack(net, images, labels, eps=0.3, generator=torch.Generator().manual_seed(seed)).images
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize(("classes", "left"), [(2, 0), (3, 1), (4, 2)])
def test_dlr_members_need_three_and_four_classes(classes, left):
    attack = types.SimpleNamespace(
        attacks_to_run=["apgd-dlr", "apgd-t"],
        apgd_targeted=types.SimpleNamespace(n_target_classes=9),
        fab=types.SimpleNamespace(n_target_classes=9),
    )
    skipped = adapter._fit_to_classes(attack, classes)
    assert len(attack.attacks_to_run) == left
    assert len(skipped) == 2 - left
    assert attack.fab.n_target_classes == attack.apgd_targeted.n_target_classes == classes - 1
