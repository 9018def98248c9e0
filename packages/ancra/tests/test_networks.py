"""What reverse attention promises beyond the official numbers: labels as an argument, no side effects, views."""

from __future__ import annotations

import pytest
import torch
from purity import unchanged

from ancra.attacks import AllLogits, targeted_pgd, untargeted_pgd
from ancra.attention import Outputs, weigh
from ancra.networks import build_network
from robust_core.attacks import pgd
from robust_core.cam import class_activation_map
from robust_core.errors import UserError
from robust_core.models import FrozenView, build_model

NAMES = ("resnet18-w4", "resnet50-w4", "preactresnet18-w4", "wrn-16-1", "resnet8-s2")


def network(name, **options):
    return build_network(name, 5, seed=3, **options).eval()


def images_of(count=3, size=32, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_labels_choose_the_weights_and_the_prediction_is_the_default(name):
    model, images = network(name), images_of()
    outputs = model(images, auxiliary=True)
    assert isinstance(outputs, Outputs)
    torch.testing.assert_close(model(images), outputs.logits)
    predicted = outputs.auxiliary[-1].argmax(dim=1)
    other = (predicted + 1) % 5
    assert not torch.allclose(model(images, attention_labels=other), outputs.logits)
    if len(outputs.auxiliary) == 1:
        torch.testing.assert_close(model(images, attention_labels=predicted), outputs.logits)
    features = model.forward_features(images)
    torch.testing.assert_close(model.forward_head(features), outputs.logits)


@pytest.mark.parametrize("name", NAMES)
def test_no_mode_plays_a_part_and_no_pass_changes_one(name):
    model, images = network(name), images_of()
    labels = torch.tensor([0, 1, 2])
    with unchanged(model):
        before = model(images, attention_labels=labels)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    torch.testing.assert_close(model(images, attention_labels=labels), before)
    assert model.training


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", NAMES)
def test_the_frozen_view_gives_the_same_outputs(name, size):
    model, images = network(name, image_size=size), images_of(size=size)
    view = FrozenView(model)
    labels = torch.tensor([4, 0, 2])
    for options in ({}, {"attention_labels": labels}):
        found = view.call(images, auxiliary=True, **options)
        expected = model(images, auxiliary=True, **options)
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(found.auxiliary, expected.auxiliary, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(view(images), model(images), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        rough = FrozenView(model, dtype=torch.bfloat16).call(images, auxiliary=True)
    assert rough.logits.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_attacks_leave_no_trace(name):
    model, images, labels = network(name).train(), images_of(), torch.tensor([0, 1, 2])
    settings = {"eps": 8 / 255, "step_size": 2 / 255, "steps": 2}
    view = FrozenView(model)
    with unchanged(model):
        start = images + 0.001
        for loss in ("ce", "kl"):
            found = untargeted_pgd(view, images, labels, start=start, cr=2.0, inner_loss=loss, **settings)
            assert not torch.equal(found, images)
        targeted_pgd(view, images, labels, start=start, cr=2.0, **settings)
        pgd(model, images, labels, **settings)
        class_activation_map(model, images)


def test_an_unknown_inner_loss_is_named():
    view, images = FrozenView(network("resnet8-s2")), images_of()
    with pytest.raises(UserError, match="did you mean 'kl'"):
        untargeted_pgd(
            view,
            images,
            torch.tensor([0, 1, 2]),
            start=images,
            eps=0.1,
            step_size=0.1,
            steps=1,
            cr=2.0,
            inner_loss="kll",
        )


def test_the_untargeted_attack_lowers_confidence_and_the_targeted_one_raises_it():
    view, images = FrozenView(network("resnet8-s2")), images_of(8)
    labels = view(images).argmax(dim=1)
    settings = {"start": images, "eps": 8 / 255, "step_size": 2 / 255, "steps": 5, "cr": 2.0}
    away = untargeted_pgd(view, images, labels, **settings)
    targets = (labels + 1) % 5
    towards = targeted_pgd(view, images, targets, **settings)

    def confidence(points, classes):
        return view(points).softmax(dim=1).gather(1, classes[:, None]).mean()

    assert confidence(away, labels) < confidence(images, labels)
    assert confidence(towards, targets) > confidence(images, targets)


def test_weights_with_and_without_attention_are_the_same_for_a_seed():
    plain, attending = build_network("resnet18-w4", 5, attention="none", seed=3), network("resnet18-w4")
    state = plain.state_dict()
    for name, value in attending.state_dict().items():
        assert torch.equal(value, state[name.replace("fc.", "linear.")]), name
    assert type(plain) is type(build_model("resnet18-w4", 5, seed=3))


def test_ones_add_auxiliary_logits_and_nothing_else():
    images = images_of()
    plain = build_network("resnet18-w4", 5, attention="none", seed=3).eval()
    deep = network("resnet18-w4", attention="ones")
    torch.testing.assert_close(deep(images), plain(images))
    for name in ("resnet18-w4", "wrn-16-1", "preactresnet18-w4"):
        outputs = network(name, attention="ones")(images, auxiliary=True)
        assert len(outputs.auxiliary) == 2
        torch.testing.assert_close(outputs.auxiliary[-1], outputs.logits)


def test_own_classifiers_give_the_weights():
    model, images = network("resnet18-w4", attention="own"), images_of()
    names = [name for name in model.state_dict() if name.startswith("attention_classifiers")]
    assert len(names) == 4
    with torch.no_grad():
        for linear in model.attention_classifiers:
            linear.weight.fill_(1.0)
    plain = build_network("resnet18-w4", 5, attention="none", seed=3).eval()
    torch.testing.assert_close(model(images), plain(images))  # weights of one


def test_a_choice_lets_the_gradient_through():
    model, images = network("resnet8-s2"), images_of().requires_grad_()

    def straight_through(logits):
        soft = logits.softmax(dim=1)
        hard = torch.nn.functional.one_hot(logits.argmax(dim=1), 5).to(soft.dtype)
        return hard + soft - soft.detach()

    hard, soft = model(images), model(images, choice=straight_through)
    torch.testing.assert_close(hard, soft)
    gradients = [torch.autograd.grad(logits.sum(), images)[0] for logits in (hard, soft)]
    assert not torch.allclose(*gradients)


def test_weights_are_spread_over_the_windows_of_the_classifier():
    features = torch.ones(1, 2, 4, 4)
    rows = torch.arange(8.0)[None]
    spread = weigh(features, rows)
    assert spread[0, 1].tolist() == [[4, 4, 5, 5], [4, 4, 5, 5], [6, 6, 7, 7], [6, 6, 7, 7]]


def test_a_compiled_view_gives_the_same_logits():
    torch._dynamo.reset()
    model, images = network("resnet8-s2"), images_of(4)
    counted = []

    def backend(graph, _):
        counted.append(graph)
        return graph.forward

    real = torch.compile
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "compile", lambda function: real(function, backend=backend))
        view = FrozenView(model, compile=True)
        for count in (4, 2):  # the smaller batch is filled up
            found = AllLogits(view)(images[:count])
            torch.testing.assert_close(found, AllLogits(FrozenView(model))(images[:count]))
    assert len(counted) == 1


def test_all_logits_stack_the_final_ones_first():
    model, images = network("resnet18-w4"), images_of()
    found = AllLogits(FrozenView(model))(images)
    assert found.shape == (3, 3, 5)
    torch.testing.assert_close(found[:, 0], model(images), rtol=1e-4, atol=1e-5)


def test_gradients_through_the_weights_are_the_same_every_time():
    """Adding up rows of the classifier by index is done in another order each time on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = build_network("resnet18-w4", 10, seed=0)
        model.fc = torch.nn.Linear(512, 10)
        model.trunk = lambda images: images
        model.attended = lambda: [torch.nn.Identity()]
        features, labels = torch.rand(128, 512, 4, 4), torch.arange(128) % 10
        found = set()
        for _ in range(30):
            loss = model(features, attention_labels=labels).square().sum()
            (gradient,) = torch.autograd.grad(loss, model.fc.weight)
            found.add(gradient.numpy().tobytes())
        assert len(found) == 1
    finally:
        torch.set_num_threads(threads)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="did you mean 'reverse'"):
        build_network("resnet18-w4", 5, attention="revers")
    with pytest.raises(UserError, match="one block in its last stage"):
        build_network("wrn-10-1", 5)
