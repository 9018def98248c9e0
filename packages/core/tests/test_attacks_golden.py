"""PGD and the minimum-margin attack against the official implementation's iterates."""

import functools

import golden
import numpy as np
import pytest
import torch

from robust_core.attacks import objectives, pgd
from robust_core.attacks.balls import LinfBall
from robust_core.attacks.mma import mma_details
from robust_core.models import FrozenView

pytestmark = pytest.mark.golden

DTYPES = {"f32": torch.float32, "f64": torch.float64}
STEPS = {"eps": 8 / 255, "step_size": 2 / 255}


@functools.cache
def problem(suffix):
    """The frozen network, the first images, their labels and the clipped uniform start."""
    arrays = golden.load("part", "inputs.npz")
    dtype = DTYPES[suffix]
    noise = torch.from_numpy(arrays["u_uniform"])
    images = torch.from_numpy(arrays["x"])[: len(noise)].to(dtype)
    labels = torch.from_numpy(arrays["y"])[: len(noise)]
    return (
        FrozenView(golden.recipe_model("resnet18", dtype)),
        images,
        labels,
        (images + noise.to(dtype)).clamp(0, 1),
    )


@functools.cache
def pgd_iterates(suffix, steps):
    network, images, labels, start = problem(suffix)
    iterates = []
    result = pgd(
        network, images, labels, steps=steps, start=start, observe=lambda x, rows: iterates.append(x), **STEPS
    )
    assert torch.equal(iterates[-1], result)
    return torch.stack(iterates)


@functools.cache
def mma_run(suffix, steps):
    """The result, and the iterates ``(targets, steps + 1, N, ...)``."""
    network, images, labels, start = problem(suffix)
    seen = []
    result = mma_details(
        network, images, labels, steps=steps, start=start, together=False,
        observe=lambda x, rows: seen.append(x), **STEPS,
    )  # fmt: skip
    return result, torch.stack(seen).view(-1, steps + 1, *images.shape)


def same_in_float64(found, file, steps):
    """Hold float64 images to the reference: those it holds whole, and all by their fingerprints."""
    arrays = golden.load("part", file)
    whole = torch.from_numpy(arrays[f"x_adv_{steps}_f64"])
    assert (found[: len(whole)] - whole).abs().max() < 1e-10
    prints = np.stack([golden.fingerprint(image) for image in found])
    reference = arrays[f"x_adv_{steps}_f64_fp"]
    assert np.abs(prints - reference).max() < 1e-10 * np.abs(reference).max()


def same_in_float32(found, file):
    reference = torch.from_numpy(golden.load("part", file)["x_adv_1_f32"])
    close = (found[: len(reference)] - reference).abs() <= 1e-6
    assert close.double().mean() >= 0.999


def rebuilt(start, images, bits):
    """The trajectory that follows from the start, the step rule and the stored signs of the gradients."""
    signs = np.unpackbits(bits, axis=-1).astype(np.float64) * 2 - 1
    points = [start]
    for step in torch.from_numpy(signs).view(len(bits), *images.shape):
        moved = points[-1] + STEPS["step_size"] * step
        moved = torch.minimum(torch.maximum(moved, images - STEPS["eps"]), images + STEPS["eps"])
        points.append(moved.clamp(0, 1))
    return torch.stack(points)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_pgd_in_float64(steps):
    same_in_float64(pgd_iterates("f64", 10)[steps], "attack_pgd.npz", steps)


def test_pgd_takes_the_stored_signs():
    _, images, _, start = problem("f64")
    bits = golden.load("part", "attack_pgd.npz")["sign_bits_f64"]
    assert (pgd_iterates("f64", 10) - rebuilt(start, images, bits)).abs().max() < 1e-10


def test_pgd_in_float32():
    same_in_float32(pgd_iterates("f32", 1)[1], "attack_pgd.npz")


@pytest.mark.parametrize("steps", [1, 2, pytest.param(10, marks=pytest.mark.slow)])
def test_mma_in_float64(steps):
    same_in_float64(mma_run("f64", steps)[0].images, "attack_mma.npz", steps)


def test_mma_takes_the_stored_signs_for_each_target():
    _, images, _, start = problem("f64")
    bits = golden.load("part", "attack_mma.npz")["sign_bits_f64"]
    _, iterates = mma_run("f64", 10)
    for found, of_target in zip(iterates, bits.reshape(len(iterates), 10, *bits.shape[1:]), strict=True):
        assert (found - rebuilt(start, images, of_target)).abs().max() < 1e-10


def test_mma_in_float32():
    same_in_float32(mma_run("f32", 1)[0].images, "attack_mma.npz")


def test_mma_targets_and_winner():
    arrays, (result, _) = golden.load("part", "attack_mma.npz"), mma_run("f64", 10)
    assert np.array_equal(result.target_classes, arrays["target_classes"])
    assert np.array_equal(result.chosen, arrays["chosen"])
    assert np.array_equal(result.margins.argsort(dim=1), arrays["loss_order"])
    assert np.array_equal(mma_run("f32", 1)[0].target_classes, arrays["target_classes"])


@pytest.mark.parametrize("which", ["clean", "adv"])
@pytest.mark.parametrize("suffix", DTYPES)
def test_mma_losses_per_target(which, suffix):
    arrays, (network, images, labels, _) = golden.load("part", "attack_mma.npz"), problem(suffix)
    points = images if which == "clean" else torch.from_numpy(arrays[f"x_adv_10_{suffix}"])
    with torch.no_grad():
        logits = network(points)
    for column, targets in enumerate(torch.from_numpy(arrays["target_classes"]).t()):
        loss = objectives.minimum_margin(logits, labels, targets).sum().item()
        margins = objectives.margin_towards(logits, labels, targets).numpy()
        tolerance = {"f32": 1e-5, "f64": 1e-10}[suffix]
        references = arrays[f"mm_loss_{which}_{suffix}"], arrays[f"mm_loss_train_{which}_{suffix}"]
        assert abs(loss - references[0][column]) < tolerance * np.abs(references[0]).max()
        assert np.abs(margins - references[1][:, column]).max() < tolerance * logits.abs().max().item()


@pytest.mark.parametrize("suffix", DTYPES)
def test_minimum_margin_on_given_logits(suffix):
    arrays = golden.load("part", "mm_loss.npz")
    logits = torch.from_numpy(arrays["logits"]).to(DTYPES[suffix]).requires_grad_()
    labels, targets = torch.from_numpy(arrays["y"]), torch.from_numpy(arrays["target"])
    loss = objectives.minimum_margin(logits, labels, targets).sum()
    loss.backward()
    margins = objectives.margin_towards(logits, labels, targets).detach().numpy()
    tolerance = {"f32": 1e-5, "f64": 1e-10}[suffix]
    reference = float(arrays[f"mm_loss_{suffix}"])
    assert abs(loss.item() - reference) < tolerance * abs(reference)
    assert np.array_equal(logits.grad.numpy(), arrays[f"mm_loss_grad_{suffix}"])
    largest = np.abs(arrays[f"mm_loss_train_{suffix}"]).max()
    assert np.abs(margins - arrays[f"mm_loss_train_{suffix}"]).max() < tolerance * largest


def test_clamping_to_a_budget_per_element():
    arrays = golden.load("part", "mm_loss.npz")
    budget = torch.from_numpy(arrays["clamp_eps"])
    clamped = LinfBall(-budget, budget).project(torch.from_numpy(arrays["clamp_eta"]))
    assert np.array_equal(clamped.numpy(), arrays["clamp_out_f32"])
