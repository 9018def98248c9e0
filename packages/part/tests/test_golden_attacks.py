"""PART's attacks, under a budget per pixel and channel, against the official implementation's images."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import golden
import numpy as np
import pytest
import torch
from torch import Tensor

from part.mask import budget
from robust_core.attacks import pgd
from robust_core.attacks.engine import gradient_of, natural_logits
from robust_core.attacks.mma import MmaResult, mma_details
from robust_core.attacks.objectives import PerImage, margin_towards, named
from robust_core.models import frozen

pytestmark = pytest.mark.golden


class Attack(NamedTuple):
    """A file of reference values, what the attack maximises, and where it starts."""

    file: str
    loss: str
    start: str


ATTACKS = [
    Attack("attack_part_pgd", "ce", "uniform"),
    Attack("loss_part_trades", "kl", "normal"),
    Attack("loss_part_mart", "ce", "normal"),
]


def tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(array.copy()).to(dtype)


def problem(start: str, dtype: torch.dtype) -> dict[str, Any]:
    """The images, labels, budget, step and start that the attacks share."""
    inputs = golden.load("part", "inputs.npz")
    mask = torch.from_numpy(inputs["eps_high_mask"].copy())
    images = tensor(inputs["x"][: len(mask)], dtype)
    eps, low_eps = float(inputs["epsilon"]), float(inputs["low_epsilon"])
    uniform = images + tensor(inputs["u_uniform"], dtype)
    starts = {
        "uniform": uniform,
        "clipped": uniform.clamp(0, 1),
        "normal": images + 0.001 * tensor(inputs["z_normal"], dtype),
    }
    return {
        "images": images,
        "labels": torch.from_numpy(inputs["y"][: len(mask)].copy()),
        "eps": budget(mask, eps=eps, low_eps=low_eps, dtype=dtype),
        "step_size": float(inputs["step_size"]),
        "start": starts[start],
    }


def step_counts(arrays: dict[str, np.ndarray]) -> list[int]:
    return sorted(int(match[1]) for name in arrays if (match := re.fullmatch(r"x_adv_(\d+)_f64", name)))


def check_float64(arrays: dict[str, np.ndarray], steps: int, images: Tensor) -> None:
    expected = arrays[f"x_adv_{steps}_f64"]
    np.testing.assert_allclose(images[: len(expected)].numpy(), expected, atol=1e-10, rtol=0)
    prints = np.stack([golden.fingerprint(image) for image in images])
    np.testing.assert_allclose(prints, arrays[f"x_adv_{steps}_f64_fp"], atol=1e-7, rtol=1e-10)


def check_one_float32_step(
    arrays: dict[str, np.ndarray], images: Tensor, error: Tensor, rows: Tensor
) -> None:
    """Compare one float32 step where the gradient exceeds its accuracy.

    ``error`` ``(N,)`` is our float32 gradient's, relative to its largest element: about 1e-4, but per cents
    where rounding switches a ReLU of a late layer. ``rows`` ``(N,)``: the row of ``grad_logrel``.
    """
    expected = arrays["x_adv_1_f32"]
    allowed = 0.001 + images.shape[0] * float(arrays["sign_mismatch_f32_vs_f64"][rows].max())
    assert images.dtype == torch.float32
    for index, image in enumerate(expected):
        assert float(error[index]) < 0.1
        equal = np.abs(images[index].numpy() - image) <= 1e-6
        accurate = arrays["grad_logrel"][rows[index], index] > math.floor(
            math.log10(float(error[index]) + 1e-6)
        )
        assert accurate.mean() > 0.2
        assert equal[accurate].mean() >= 1 - allowed
        assert equal.mean() >= 0.99 - allowed


def gradient_error(model: torch.nn.Module, given: dict[str, Any], loss: Any) -> Tensor:
    """Return the error of the float32 gradient at the start, relative to its largest element, ``(N,)``."""
    gradients = []
    for dtype in (torch.float32, torch.float64):
        view = frozen(model, dtype=dtype)
        images, start = given["images"].to(dtype), given["start"].to(dtype)
        objective = named(loss, targeted=False, reference=lambda v=view, x=images: natural_logits(v, x))
        # The images are cast, not computed anew in float64: the difference is the gradient's own.
        gradients.append(gradient_of(view, start, given["labels"], objective)[0].double())
    difference = (gradients[0] - gradients[1]).abs().amax(dim=(1, 2, 3))
    return difference / gradients[1].abs().amax(dim=(1, 2, 3))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.file)
def test_all_steps_in_float64(attack):
    arrays = golden.load("part", f"{attack.file}.npz")
    view = frozen(golden.recipe_model("resnet18", torch.float64))
    for steps in step_counts(arrays):
        images = pgd(view, **problem(attack.start, torch.float64), steps=steps, loss=attack.loss)
        check_float64(arrays, steps, images)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.file)
def test_one_step_in_float32(attack):
    model, given = golden.recipe_model("resnet18"), problem(attack.start, torch.float32)
    images = pgd(model, **given, steps=1, loss=attack.loss)
    rows = torch.zeros(len(images), dtype=torch.int64)
    error = gradient_error(model, given, attack.loss)
    check_one_float32_step(golden.load("part", f"{attack.file}.npz"), images, error, rows)


def check_margins(arrays: dict[str, np.ndarray], view: Any, given: dict[str, Any], result: MmaResult) -> None:
    for where, images in (("clean", given["images"]), ("adv", result.images)):
        with torch.no_grad():
            logits = view(images)
        margins = logits.gather(1, result.target_classes) - logits.gather(1, given["labels"][:, None])
        np.testing.assert_allclose(
            margins.numpy(),
            arrays[f"mm_loss_train_{where}_f64"],
            atol=1e-10 * float(logits.abs().max()),
            rtol=0,
        )
        clamped = -(50.0 - margins).clamp(min=0).sum(dim=0)
        np.testing.assert_allclose(clamped.numpy(), arrays[f"mm_loss_{where}_f64"], rtol=1e-10)


@pytest.mark.slow
def test_part_mma_in_float64():
    arrays = golden.load("part", "attack_part_mma.npz")
    view = frozen(golden.recipe_model("resnet18", torch.float64))
    given = problem("clipped", torch.float64)
    for steps in step_counts(arrays):
        result = mma_details(view, **given, steps=steps)
        check_float64(arrays, steps, result.images)
        np.testing.assert_array_equal(result.target_classes.numpy(), arrays["target_classes"])
    np.testing.assert_array_equal(result.chosen.numpy(), arrays["chosen"])
    np.testing.assert_array_equal(result.margins.argsort(dim=1).numpy(), arrays["loss_order"])
    check_margins(arrays, view, given, result)


def test_part_mma_in_float32():
    arrays = golden.load("part", "attack_part_mma.npz")
    model, given = golden.recipe_model("resnet18"), problem("clipped", torch.float32)
    result = mma_details(model, **given, steps=1)
    np.testing.assert_array_equal(result.target_classes.numpy(), arrays["target_classes"])
    targets = result.target_classes.gather(1, result.chosen[:, None]).squeeze(1)
    error = gradient_error(model, given, PerImage(margin_towards, (targets,)))
    steps = arrays["grad_logrel"].shape[0] // arrays["target_classes"].shape[1]
    check_one_float32_step(arrays, result.images, error, result.chosen * steps)
