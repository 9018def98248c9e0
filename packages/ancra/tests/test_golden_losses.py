"""ANCRA's training step against the official one: terms, gradients, statistics, logged distances."""

from __future__ import annotations

import golden
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ra_golden import BETA, CR, DTYPES, EPS, STEP, ZETA, close, inputs, model_of

from ancra.attacks import untargeted_pgd
from ancra.attention import Outputs
from ancra.losses import exclusion, natural_and_robust
from ancra.negatives import Negatives
from ancra.published import published_train_mode_pgd
from robust_core.losses import trades_terms
from robust_core.models import FrozenView

pytestmark = pytest.mark.golden

NETWORKS = ("resnet18_ra", "wrn34_10_ra", "preact18_ra")
STEPS = {"resnet18_ra": 10}
FILES = {
    name: f"loss_anc_{name}" + ("_alpha1.0" if name == "resnet18_ra" else "") + ".npz" for name in NETWORKS
}


def adversarial_images(name, suffix, count):
    """Return the attack's images: ours in float64; in float32 the official ones, ten steps are not comparable."""
    arrays = golden.load("ancra", FILES[name])
    if suffix == "f32":
        return torch.from_numpy(arrays["x_adv_f32"])
    given = inputs(suffix, size=64 if name == "preact18_ra" else 32)
    images = given["x"][:count]
    found = untargeted_pgd(
        FrozenView(model_of(name, suffix)),
        images,
        given["y"][:count],
        start=images + 0.001 * given["z"][:count],
        eps=EPS,
        step_size=STEP,
        steps=STEPS.get(name, 1),
        cr=CR,
    )
    close(np.stack([golden.fingerprint(image) for image in found]), arrays["x_adv_fp_f64"], 1e-10)
    return found


def training_step(name, suffix, alpha=1.0):
    """Return the model after the step's backward pass, the terms, the loss and the three batches."""
    arrays = golden.load("ancra", FILES[name])
    count = len(arrays["neg_gt"])
    given = inputs(suffix, size=64 if name == "preact18_ra" else 32)
    images, labels = given["x"][:count], given["y"][:count]
    adversarial = adversarial_images(name, suffix, count)
    others = torch.from_numpy(arrays["data_neg"]).to(DTYPES[suffix])
    other_labels = torch.from_numpy(arrays["neg_gt"])
    model = model_of(name, suffix).train()
    natural = model(images, attention_labels=labels, auxiliary=True)
    attacked = model(adversarial, attention_labels=labels, auxiliary=True)
    negative = model(others, attention_labels=other_labels, auxiliary=True)
    chosen = Negatives(torch.arange(count)[:, None], torch.ones(count, 1, dtype=torch.bool))
    terms = (
        *natural_and_robust(natural, attacked, labels, cr=CR),
        exclusion(natural, negative, chosen, alpha=alpha, cr=CR),
    )
    loss = terms[0] + BETA * terms[1] + ZETA * terms[2]
    loss.backward()
    return model, terms, loss, (images, adversarial, others)


def check_gradients(model, entry, arrays, suffix):
    tolerance = {"f64": 1e-9, "f32": 1e-3}[suffix]
    named = dict(model.named_parameters())
    if (
        "linear.weight" in named and "fc.weight" in entry["parameters"]
    ):  # the core's name of the plain ResNet's
        named |= {"fc.weight": named["linear.weight"], "fc.bias": named["linear.bias"]}
    norms = np.array(
        [
            np.nan if named[name].grad is None else float(named[name].grad.norm())
            for name in entry["parameters"]
        ]
    )
    reference = arrays[f"grad_norm_{suffix}"]
    assert (np.isnan(norms) == np.isnan(reference)).all()
    assert np.nanmax(np.abs(norms - reference) / np.nanmax(reference)) < tolerance
    for key in arrays:
        if key.startswith("grad:") and key.endswith(suffix):
            official = arrays[key]
            ours = named[key[5:].removesuffix(f"_{suffix}")].grad
            close(ours[tuple(slice(side) for side in official.shape)], official, tolerance)


@pytest.mark.parametrize(("name", "suffix"), golden.in_both_precisions(NETWORKS))
def test_terms_gradients_and_statistics(name, suffix):
    arrays = golden.load("ancra", FILES[name])
    tolerance = {"f64": 1e-10, "f32": 1e-5}[suffix]
    model, terms, loss, batches = training_step(name, suffix)
    for term, value in zip(("natural", "robust", "exclusion"), terms, strict=True):
        close(value, arrays[f"loss_{term}_{suffix}"], tolerance)
    close(loss, arrays[f"loss_{suffix}"], tolerance)
    check_gradients(model, golden.load_json("ancra", "models.json")[name], arrays, suffix)
    norm = model.get_submodule("bn" if name == "preact18_ra" else "bn1")
    for statistic in ("running_mean", "running_var"):
        close(norm.get_buffer(statistic)[:64], arrays[f"bn_{statistic}_{suffix}"], tolerance)
    assert norm.num_batches_tracked == arrays["bn_num_batches"]
    model = model.eval()
    with torch.no_grad():
        after = [model(batch) for batch in batches]
    if f"logits_eval_{suffix}" in arrays:
        for logits, key in zip(after, ("logits_eval", "output_adv_eval", "output_neg_eval"), strict=True):
            close(logits, arrays[f"{key}_{suffix}"], 10 * tolerance)
        for logits, key in zip(after[1:], ("ap_l2", "an_l2"), strict=True):
            close((after[0] - logits).norm() / len(logits) ** 0.5, arrays[f"{key}_{suffix}"], 10 * tolerance)
    model.train()


@pytest.mark.parametrize("suffix", DTYPES)
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_other_shares_of_the_frozen_side(alpha, suffix):
    arrays = golden.load("ancra", f"loss_anc_resnet18_ra_alpha{alpha}.npz")
    model, _, loss, _ = training_step("resnet18_ra", suffix, alpha)
    close(loss, arrays[f"loss_{suffix}"], {"f64": 1e-10, "f32": 1e-5}[suffix])
    check_gradients(model, golden.load_json("ancra", "models.json")["resnet18_ra"], arrays, suffix)


@pytest.mark.parametrize("suffix", DTYPES)
def test_the_baseline_with_its_attack_in_training_mode(suffix):
    arrays = golden.load("ancra", "loss_baseline_resnet18.npz")
    given = inputs(suffix)
    images, labels = given["x"][:4], given["y"][:4]
    model = model_of("resnet18", suffix).train()
    attacked = published_train_mode_pgd(
        model, images, labels, start=images + 0.001 * given["z"], eps=EPS, step_size=STEP, steps=10
    )
    if suffix == "f32":
        attacked = torch.from_numpy(arrays["x_adv_f32"])
    terms = trades_terms(model(images), model(attacked), labels)
    loss = terms.natural + BETA * terms.robust
    loss.backward()
    tolerance = {"f64": 1e-10, "f32": 1e-5}[suffix]
    for value, key in ((loss, "loss"), (terms.natural, "loss_natural"), (terms.robust, "loss_robust")):
        close(value, arrays[f"{key}_{suffix}"], tolerance)
    close(terms.robust, arrays[f"loss_robust_t_{suffix}"], tolerance)
    check_gradients(model, golden.load_json("ancra", "models.json")["resnet18"], arrays, suffix)
    assert model.bn1.num_batches_tracked == arrays["bn1_num_batches"]


def test_without_blocks_only_the_final_logits_count():
    logits, labels = torch.randn(5, 4, dtype=torch.float64), torch.arange(5) % 4
    plain, blocks = Outputs(logits), Outputs(logits, (logits, 2 * logits))
    natural, robust = natural_and_robust(plain, plain, labels, cr=2.0)
    torch.testing.assert_close(natural, F.cross_entropy(logits, labels))
    assert float(robust) == pytest.approx(0.0, abs=1e-12)
    with_blocks, _ = natural_and_robust(blocks, blocks, labels, cr=2.0)
    expected = 2 * F.cross_entropy(logits, labels) + F.cross_entropy(2 * logits, labels)
    torch.testing.assert_close(with_blocks, expected)
    unweighted, _ = natural_and_robust(blocks, blocks, labels, cr=0.0)
    torch.testing.assert_close(unweighted, natural)


def test_anchors_without_candidates_count_nothing():
    natural = Outputs(torch.tensor([[3.0, 0.0], [3.0, 0.0]]))
    negative = Outputs(torch.tensor([[3.0, 0.0], [3.0, 0.0]]))
    chosen = Negatives(torch.tensor([[1], [0]]), torch.tensor([[True], [False]]))
    both = Negatives(chosen.indices, torch.tensor([[True], [True]]))
    half, whole = (exclusion(natural, negative, found, alpha=1.0, cr=2.0) for found in (chosen, both))
    torch.testing.assert_close(2 * half, whole)
