"""Values and gradients of what attacks maximise."""

import pytest
import torch
from torch.autograd import gradcheck

from robust_core.attacks import objectives


def some_logits(classes=5, count=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (count,), generator=generator)
    return logits.requires_grad_(), labels, (labels + 1 + torch.arange(count) % (classes - 1)) % classes


def table():
    targets = some_logits()[2]
    reference = some_logits(seed=1)[0]
    return {
        "cross_entropy": objectives.cross_entropy,
        "margin": objectives.margin,
        "dlr": objectives.dlr,
        "kl": objectives.kl_to(reference),
        "towards": objectives.dlr_towards(targets),
        "minimum margin": objectives.PerImage(objectives.minimum_margin, (targets,)),
        "margin towards": objectives.PerImage(objectives.margin_towards, (targets,)),
        "negated": objectives.Negated(objectives.dlr_towards(targets)),
    }


@pytest.mark.parametrize("name", table())
def test_gradients_equal_finite_differences(name):
    logits, labels, _ = some_logits()
    assert gradcheck(lambda z: table()[name](z, labels), logits)


@pytest.mark.parametrize("name", table())
def test_permuting_or_choosing_images_changes_nothing(name):
    logits, labels, _ = some_logits()
    objective = table()[name]
    whole = objective(logits, labels)
    for rows in (torch.tensor([6, 2, 0, 1, 5, 4, 3]), torch.tensor([4, 1]), labels > 2):
        part = objectives.select(objective, rows)(logits[rows], labels[rows])
        assert torch.equal(part, whole[rows])


def test_values_by_hand():
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.0]], dtype=torch.float64)
    first, second, last = (torch.tensor([k]) for k in (0, 1, 3))
    assert objectives.best_wrong_logit(logits, first).item() == 3
    assert objectives.margin(logits, first).item() == -1
    assert objectives.margin(logits, second).item() == 3
    assert objectives.dlr(logits, first).item() == pytest.approx(-1 / 3)
    assert objectives.dlr(logits, last).item() == pytest.approx(4 / 3)
    assert objectives.margin_towards(logits, first, second).item() == -3
    assert objectives.targeted_dlr(logits, first, second).item() == pytest.approx(-3 / 3.5)
    assert objectives.minimum_margin(logits, first, second).item() == -53
    assert objectives.minimum_margin(50 * logits, last, first).item() == 0
    probabilities = logits.softmax(1)
    assert objectives.cross_entropy(logits, last).item() == pytest.approx(-probabilities[0, 3].log().item())
    other = torch.tensor([[0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    expected = (probabilities * (probabilities / other.softmax(1)).log()).sum().item()
    assert objectives.kl_to(logits)(other, first).item() == pytest.approx(expected)


def test_dlr_is_unchanged_by_shift_and_scale():
    logits, labels, targets = some_logits()
    for objective in (objectives.dlr, objectives.dlr_towards(targets)):
        assert torch.allclose(objective(100 * logits + 7, labels), objective(logits, labels), atol=1e-9)


def test_kl_gives_no_gradient_to_its_reference():
    reference = torch.zeros(2, 3, requires_grad=True)
    logits = torch.randn(2, 3, requires_grad=True)
    objectives.kl_to(reference)(logits, torch.zeros(2).long()).sum().backward()
    assert reference.grad is None
    assert logits.grad is not None


@pytest.mark.parametrize("name", table())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(name, dtype):
    logits, labels, _ = some_logits()
    extreme = (1e4 * logits.detach().sign()).to(dtype).requires_grad_()
    extreme_rows = torch.where(torch.arange(7)[:, None] == 0, 0 * extreme, extreme)
    value = table()[name](extreme_rows, labels)
    (gradient,) = torch.autograd.grad(value.sum(), extreme)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()


def test_an_object_with_select_takes_the_place_of_an_objective():
    class Shifted:
        def __init__(self, shift):
            self.shift = shift

        def __call__(self, logits, labels):
            return logits[:, 0] + self.shift

        def select(self, rows):
            return Shifted(self.shift[rows])

    part = objectives.select(objectives.Negated(Shifted(torch.arange(3))), torch.tensor([2]))
    assert part(torch.zeros(1, 2), torch.zeros(1)).item() == -2
    assert objectives.select(objectives.dlr, torch.tensor([0])) is objectives.dlr
