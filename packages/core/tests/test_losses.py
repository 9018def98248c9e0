"""Losses against their formulas, and where logits are extreme."""

import pytest
import torch
from torch.autograd import gradcheck

from robust_core import losses


def two_logits(count=6, classes=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    natural, adversarial = 2 * torch.randn(2, count, classes, generator=generator, dtype=dtype)
    labels = torch.randint(classes, (count,), generator=generator)
    return natural.requires_grad_(), adversarial.requires_grad_(), labels


LOSSES = {
    "cross_entropy": lambda natural, adversarial, labels: losses.cross_entropy(adversarial, labels),
    "kl": lambda natural, adversarial, labels: losses.kl_divergence(natural, adversarial).mean(),
    "trades": lambda *arguments: losses.trades(*arguments, beta=6.0),
    "mart": lambda *arguments: losses.mart(*arguments, beta=6.0),
}
table = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@table
def test_gradients_equal_finite_differences(loss):
    natural, adversarial, labels = two_logits()
    assert gradcheck(lambda a, b: loss(a, b, labels), (natural, adversarial))


@table
def test_permuting_the_batch_changes_nothing(loss):
    natural, adversarial, labels = two_logits()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert torch.allclose(
        loss(natural, adversarial, labels),
        loss(natural[order], adversarial[order], labels[order]),
        atol=1e-14,
    )


@table
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(loss, dtype):
    signs = torch.tensor([[1, -1, 0, 0], [-1, 1, 0, 0], [-1, 1, 1, 1], [1, 1, 1, -1]])
    labels = torch.tensor([0, 0, 0, 3])
    for natural_scale in (0.0, 1e4):
        for adversarial_scale in (-1e4, 0.0, 1e4):
            natural = (natural_scale * signs).to(dtype).requires_grad_()
            adversarial = (adversarial_scale * signs).to(dtype).requires_grad_()
            value = loss(natural, adversarial, labels)
            gradients = torch.autograd.grad(value, (natural, adversarial), allow_unused=True)
            assert torch.isfinite(value)
            assert value.dtype == dtype
            assert all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)


@table
def test_no_argument_is_changed(loss):
    natural, adversarial, labels = two_logits()
    before = natural.clone(), adversarial.clone(), labels.clone()
    loss(natural, adversarial, labels).backward()
    assert torch.equal(natural, before[0])
    assert torch.equal(adversarial, before[1])
    assert torch.equal(labels, before[2])


def test_trades_by_its_formula():
    natural, adversarial, labels = two_logits()
    p, q = natural.softmax(1), adversarial.softmax(1)
    rows = torch.arange(6)
    terms = losses.trades_terms(natural, adversarial, labels)
    assert torch.allclose(terms.natural, -p[rows, labels].log().mean())
    assert torch.allclose(terms.robust, (p * (p / q).log()).sum(1).mean())
    assert torch.allclose(
        losses.trades(natural, adversarial, labels, beta=3.0), terms.natural + 3 * terms.robust
    )
    assert losses.kl_divergence(natural, natural).abs().max() == 0


def test_mart_by_its_formula():
    natural, adversarial, labels = two_logits()
    p, q = natural.softmax(1), adversarial.softmax(1)
    rows = torch.arange(6)
    wrong = torch.stack([max(q[i, k] for k in range(4) if k != labels[i]) for i in rows])
    terms = losses.mart_terms(natural, adversarial, labels)
    assert torch.allclose(terms.cross_entropy, -q[rows, labels].log().mean())
    assert torch.allclose(terms.margin, -(1.0001 - wrong + 1e-12).log().mean())
    weights = 1.0000001 - p[rows, labels]
    assert torch.allclose(terms.robust, (weights * (p * (p.log() - (q + 1e-12).log())).sum(1)).mean())
    total = losses.mart(natural, adversarial, labels, beta=5.0)
    assert torch.allclose(total, terms.cross_entropy + terms.margin + 5 * terms.robust)
