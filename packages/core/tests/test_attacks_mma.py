"""The minimum-margin attack: targets, winners, and its two ways of running them."""

import pytest
import torch
from small_nets import ConvNet, linear_net, prototypes, trained_net

from robust_core.attacks import margin_pgd, mma, objectives
from robust_core.attacks.mma import mma_details, wrong_classes

pytestmark = pytest.mark.usefixtures("one_thread")


def some_images(count=8):
    images, labels = prototypes(count, 5)
    return images.double(), labels


SETTINGS = {"eps": 0.15, "step_size": 0.04, "steps": 5}


@pytest.mark.parametrize("targets", [1, 3, 9])
@pytest.mark.parametrize("eps", ["number", "image", "pixel", "channel"])
def test_all_targets_at_once_equal_one_after_the_other(targets, eps):
    net, (images, labels) = ConvNet(6).double(), some_images(3)
    shape = {"number": (), "image": (3,), "pixel": (3, 3, 8, 8), "channel": (3, 1, 1)}[eps]
    amount = 0.2 * torch.rand(shape, generator=torch.Generator().manual_seed(0))
    settings = {**SETTINGS, "eps": amount if shape else 0.15, "step_size": amount / 4 if shape else 0.04}
    one, all_at_once = (
        mma_details(net, images, labels, targets=targets, together=together, **settings)
        for together in (False, True)
    )
    assert torch.allclose(one.images, all_at_once.images, atol=1e-10)
    assert torch.allclose(one.margins, all_at_once.margins, atol=1e-8)
    assert torch.equal(one.target_classes, all_at_once.target_classes)
    assert one.target_classes.shape == (3, min(targets, 5))


@pytest.mark.parametrize("together", [False, True])
def test_the_winner_has_the_largest_margin_of_its_last_iterates(together):
    net, (images, labels) = trained_net().double(), some_images(40)
    ends = []
    result = mma_details(
        net, images, labels, together=together, observe=lambda x, rows: ends.append((x, rows)), **SETTINGS
    )
    assert all(torch.equal(rows, torch.arange(40)) for _, rows in ends)
    last = [ends[i][0] for i in ((15, 16, 17) if together else (5, 11, 17))]
    margins = torch.stack(
        [objectives.margin_towards(net(x), labels, result.target_classes[:, k]) for k, x in enumerate(last)],
        dim=1,
    )
    assert torch.allclose(margins, result.margins, atol=1e-9)
    assert torch.equal(margins.argmax(1), result.chosen)
    assert len(result.chosen.unique()) > 1
    for i, column in enumerate(result.chosen.tolist()):
        assert torch.equal(result.images[i], last[column][i])


def test_targets_are_the_most_likely_wrong_classes():
    logits = torch.tensor([[5.0, 1.0, 4.0, 3.0], [0.0, 1.0, 4.0, 3.0]])
    found = wrong_classes(logits, torch.tensor([0, 1]), 2)
    assert found.tolist() == [[3, 2], [3, 2]]
    assert wrong_classes(logits, torch.tensor([2, 3]), 3).tolist() == [[1, 3, 0], [0, 1, 2]]


def test_two_classes_leave_one_target_and_its_closed_form():
    weight = torch.randn(2, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1])
    result = mma(linear_net(weight, torch.zeros(2)), images, labels, **{**SETTINGS, "steps": 12})
    towards = (weight[1 - labels] - weight[labels]).view_as(images)
    assert torch.allclose(result, (images + 0.15 * towards.sign()).clamp(0, 1), atol=1e-12)


def test_it_breaks_about_what_margin_pgd_breaks():
    net, (images, labels) = trained_net().double(), some_images(200)
    right = [
        (net(attack(net, images, labels, eps=0.1, step_size=0.025, steps=20)).argmax(1) == labels)
        .sum()
        .item()
        for attack in (mma, margin_pgd)
    ]
    assert right[0] <= right[1] + 2
    assert 0 < right[0] < 200


def test_known_natural_logits_save_a_pass():
    net, (images, labels) = ConvNet(6).eval().double(), some_images(2)
    passes = []

    def counted(x):
        passes.append(x.requires_grad)
        return net(x)

    first = mma(counted, images, labels, **SETTINGS)
    assert len(passes) == 1 + 3 * 6
    passes.clear()
    second = mma(counted, images, labels, reference_logits=net(images), **SETTINGS)
    assert len(passes) == 3 * 6
    assert torch.equal(first, second)
