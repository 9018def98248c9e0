"""The asymmetric contrast against the official function, and its definition."""

from __future__ import annotations

import golden
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ra_golden import DTYPES, close

from ancra.contrast import asymmetric_contrast, similarity


def logits_of(suffix):
    arrays = golden.load("ancra", "loss_fn.npz")
    names = ("logits_nat", "logits_neg")
    return tuple(torch.from_numpy(arrays[name]).to(DTYPES[suffix]).requires_grad_() for name in names)


@pytest.mark.golden
@pytest.mark.parametrize("suffix", DTYPES)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_value_and_gradients_are_the_official_ones(alpha, suffix):
    reference, tolerance = golden.load("ancra", "loss_fn.npz"), {"f32": 1e-6, "f64": 1e-12}[suffix]
    natural, negative = logits_of(suffix)
    loss = asymmetric_contrast(natural, negative, alpha=alpha).sum()
    close(loss, reference[f"alpha{alpha}_loss_{suffix}"], tolerance)
    gradients = torch.autograd.grad(loss, (natural, negative), allow_unused=True)
    for gradient, side in zip(gradients, ("nat", "neg"), strict=True):
        official = reference[f"alpha{alpha}_grad_{side}_{suffix}"]
        if official.any():
            close(gradient, official, tolerance)
        else:
            assert gradient is None


@pytest.mark.golden
@pytest.mark.parametrize("suffix", DTYPES)
def test_similarity_is_the_official_one(suffix):
    reference, tolerance = golden.load("ancra", "loss_fn.npz"), {"f32": 1e-6, "f64": 1e-12}[suffix]
    natural, negative = logits_of(suffix)
    each = similarity(F.softmax(natural, dim=1), F.softmax(negative, dim=1))
    assert ((each > 0).numpy() == reference["agree"]).all()
    close(each.sum(), reference[f"ori_loss_{suffix}"], tolerance)
    gradients = torch.autograd.grad(each.sum(), (natural, negative))
    for gradient, side in zip(gradients, ("nat", "neg"), strict=True):
        close(gradient, reference[f"ori_grad_{side}_{suffix}"], tolerance)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(2, 6), st.floats(0, 1), st.integers(0, 2**31))
def test_it_is_symmetric_in_value_bounded_and_follows_the_batch(rows, classes, alpha, seed):
    generator = torch.Generator().manual_seed(seed)
    natural, negative = (
        5 * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    each = asymmetric_contrast(natural, negative, alpha=alpha)
    assert bool(((each >= 0) & (each <= 1)).all())
    torch.testing.assert_close(each, asymmetric_contrast(negative, natural, alpha=1 - alpha))
    order = torch.randperm(rows, generator=generator)
    torch.testing.assert_close(asymmetric_contrast(natural[order], negative[order], alpha=alpha), each[order])
    agree = natural.argmax(1) == negative.argmax(1)
    assert torch.equal(each > 0, agree)


def test_alpha_one_freezes_the_natural_side_and_extreme_logits_stay_finite():
    natural = torch.tensor([[1e4, -1e4], [0.0, 1.0]], requires_grad=True)
    negative = torch.tensor([[1e4, 0.0], [0.0, 2.0]], requires_grad=True)
    asymmetric_contrast(natural, negative, alpha=1.0).sum().backward()
    assert natural.grad is None
    assert negative.grad[1].any()
    assert bool(negative.grad.isfinite().all())
