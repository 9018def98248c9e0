"""PART-T and PART-M: losses, gradients and running statistics at the official implementation's images."""

from __future__ import annotations

import re

import golden
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robust_core.losses import cross_entropy, kl_divergence, mart_terms

pytestmark = pytest.mark.golden

BETA = 6.0
# Largest step count of the files, whose images are stored for the whole batch.
STEPS = 10
TOLERANCES = {torch.float64: (1e-10, 1e-9), torch.float32: (1e-5, 1e-3)}  # losses, gradients


def tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(array.copy()).to(dtype)


def published_loss(
    kind: str, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, forwards: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and its named terms from train-mode forwards in the published order."""
    natural_logits = model(images)
    adversarial_logits = model(adversarial)
    if kind == "trades":
        again = model(images) if forwards == 3 else natural_logits
        natural = cross_entropy(natural_logits, labels)
        robust = kl_divergence(again, adversarial_logits).mean()
        return natural + BETA * robust, {"natural": natural, "robust": robust}
    terms = mart_terms(natural_logits, adversarial_logits, labels)
    named = {"bce_ce": terms.cross_entropy, "bce_margin": terms.margin, "robust": terms.robust}
    return terms.cross_entropy + terms.margin + BETA * terms.robust, named


def check_close(actual: Tensor, expected: np.ndarray, tolerance: float) -> None:
    """Compare relative to the largest absolute value of the expected array."""
    expected = np.asarray(expected, dtype=np.float64)
    np.testing.assert_allclose(
        actual.detach().double().numpy(), expected, rtol=0, atol=tolerance * np.abs(expected).max()
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("kind", ["trades", "mart"])
def test_loss_gradients_and_running_statistics(kind, dtype):
    arrays, inputs = golden.load("part", f"loss_part_{kind}.npz"), golden.load("part", "inputs.npz")
    suffix = "f64" if dtype == torch.float64 else "f32"
    loss_tolerance, gradient_tolerance = TOLERANCES[dtype]
    adversarial = tensor(arrays[f"x_adv_{STEPS}_{suffix}"], dtype)
    images = tensor(inputs["x"][: len(adversarial)], dtype)
    labels = torch.from_numpy(inputs["y"][: len(adversarial)].copy())
    forwards = int(arrays["n_train_forwards"])
    model = golden.recipe_model("resnet18", dtype).train()

    loss, terms = published_loss(kind, model, images, adversarial, labels, forwards)
    loss.backward()

    check_close(loss, arrays[f"loss_{suffix}"], loss_tolerance)
    for name, value in terms.items():
        check_close(value, arrays[f"loss_{name}_{suffix}"], loss_tolerance)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    order = golden.load_json("part", "models.json")["resnet18"]["parameters"]
    norms = torch.stack([gradients[name].norm() for name in order])
    np.testing.assert_allclose(norms.double().numpy(), arrays[f"grad_norm_{suffix}"], rtol=gradient_tolerance)
    for key, expected in arrays.items():
        if match := re.fullmatch(rf"grad:(.*)_{suffix}", key):
            piece = gradients[match[1]][tuple(slice(0, length) for length in expected.shape)]
            check_close(piece, expected, gradient_tolerance)
    state = model.state_dict()
    for name in ("running_mean", "running_var"):
        check_close(state[f"bn1.{name}"], arrays[f"bn1_{name}_{suffix}"], loss_tolerance)
    assert int(state["bn1.num_batches_tracked"]) == int(arrays["bn1_num_batches"]) == forwards
