"""ANCRA's attacks against the official iterates: every step in float64, the first one in float32."""

from __future__ import annotations

import functools

import golden
import numpy as np
import pytest
import torch
from ra_golden import CR, DTYPES, EPS, STEP, close, inputs, model_of

from ancra.attacks import AllLogits, targeted_pgd, untargeted_pgd
from ancra.published import published_cw, published_train_mode_pgd
from robust_core.attacks import pgd
from robust_core.models import FrozenView

pytestmark = pytest.mark.golden

TRAINING = {"eps": EPS, "step_size": STEP}
SMALL = {"eps": EPS / 16, "step_size": 0.05 / 255}  # C&W: so that the batch does not stand still at once


class Unfolded(FrozenView):
    """The network itself where a view is expected: its float32 rounding is the official one's."""

    def __init__(self, model):
        torch.nn.Module.__init__(self)
        self.network = model

    def call(self, images, **arguments):
        return self.network(images, **arguments)

    def forward(self, images):
        return self.network(images)


def case(name, suffix):
    """Return a function from steps to images."""
    size = 64 if name == "attack_tiny_u_pgd" else 32
    given = inputs(suffix, size=size)
    count = 2 if name in ("attack_tiny_u_pgd", "attack_wrn_u_pgd") else 4
    images, labels = given["x"][:count], given["y"][:count]
    network = {"attack_wrn_u_pgd": "wrn34_10_ra", "attack_tiny_u_pgd": "preact18_ra"}.get(name, "resnet18_ra")
    if name.startswith("attack_baseline"):
        network = "resnet18"
    model = model_of(network, suffix)
    view = FrozenView(model) if suffix == "f64" else Unfolded(model)
    near = images + 0.001 * given["z"][:count]
    arrays = golden.load("ancra", f"{name}.npz")
    if name == "attack_t_pgd":
        targets, start = torch.from_numpy(arrays["target"]), images + 0.001 * given["z2"]
        return lambda steps: targeted_pgd(view, images, targets, start=start, steps=steps, cr=CR, **TRAINING)
    if name == "attack_u_trades":
        return lambda steps: untargeted_pgd(
            view, images, labels, start=near, steps=steps, cr=CR, inner_loss="kl", **TRAINING
        )
    if name == "attack_eval_cw":
        labels, start = torch.from_numpy(arrays["labels"]), images + given["u"] / 16
        return lambda steps: published_cw(view, images, labels, start=start, steps=steps, **SMALL)
    if name in ("attack_eval_pgd", "attack_eval_fgsm"):
        labels = torch.from_numpy(arrays["labels"])
        step = EPS if name == "attack_eval_fgsm" else STEP
        return lambda steps: pgd(
            view, images, labels, start=images + given["u"], eps=EPS, step_size=step, steps=steps
        )
    if name == "attack_baseline_u_pgd_train":
        return lambda steps: published_train_mode_pgd(
            model, images, labels, start=near, steps=steps, **TRAINING
        )
    return lambda steps: untargeted_pgd(view, images, labels, start=near, steps=steps, cr=CR, **TRAINING)


@functools.cache
def found(name, suffix, steps):
    """Return the attack's images after so many steps."""
    return case(name, suffix)(steps)


NAMES = (
    *("attack_u_pgd", "attack_u_trades", "attack_t_pgd", "attack_wrn_u_pgd", "attack_tiny_u_pgd"),
    *("attack_whitebox_train", "attack_eval_pgd", "attack_eval_fgsm", "attack_eval_cw"),
    *("attack_baseline_u_pgd_eval", "attack_baseline_u_pgd_train"),
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "wrn" in name else []) for name in NAMES]
)
def test_images_in_float64(name):
    arrays = golden.load("ancra", f"{name}.npz")
    last = max(int(key.split("_")[2]) for key in arrays if key.startswith("x_adv_"))
    for steps in [last] if name == "attack_baseline_u_pgd_train" else sorted({1, 2, last} & {1, 2, 10}):
        if f"x_adv_{steps}_f64" not in arrays:
            continue
        images = found(name, "f64", steps)
        whole = torch.from_numpy(arrays[f"x_adv_{steps}_f64"])
        assert (images[: len(whole)] - whole).abs().max() < 1e-10
        prints = np.stack([golden.fingerprint(image) for image in images])
        close(prints, arrays[f"x_adv_{steps}_f64_fp"], 1e-10)
    if "returned_counts" in arrays:
        check_counts(name, arrays)


@pytest.mark.parametrize("name", NAMES)
def test_one_step_in_float32(name):
    arrays = golden.load("ancra", f"{name}.npz")
    reference = torch.from_numpy(arrays["x_adv_1_f32"])
    images = found(name, "f32", 1)[: len(reference)]
    # Elements whose gradient is below the accuracy of float32 have a sign that rounding decides.
    certain = torch.from_numpy(arrays["grad_logrel"][0][: len(reference)]) > -5
    wrong = ((images - reference).abs() > 1e-6) & certain
    assert float(wrong.float().mean()) <= 0.001


def test_the_train_mode_attack_moves_the_running_statistics():
    reference = golden.load("ancra", "attack_baseline_u_pgd_train.npz")
    for suffix in DTYPES:
        given, model = inputs(suffix), model_of("resnet18", suffix)
        start = given["x"][:4] + 0.001 * given["z"]
        published_train_mode_pgd(model, given["x"][:4], given["y"][:4], start=start, steps=10, **TRAINING)
        assert not model.training
        assert model.bn1.num_batches_tracked == reference["bn1_num_batches_after_10"]
        tolerance = {"f64": 1e-10, "f32": 1e-4}[suffix]  # ten float32 steps are not comparable one by one
        for statistic in ("running_mean", "running_var"):
            official = reference[f"bn1_{statistic}_after_10_{suffix}"]
            close(model.bn1.get_buffer(statistic), official, tolerance)


def check_counts(name, arrays):
    """Compare with what the official evaluation returned: right on natural and on adversarial images, or errors."""
    view, images = FrozenView(model_of("resnet18_ra", "f64")), inputs("f64")["x"][:4]
    labels = torch.from_numpy(arrays["labels"])
    for steps, counts in zip(arrays["steps"], arrays["returned_counts"], strict=True):
        right = int((view(found(name, "f64", int(steps))).argmax(dim=1) == labels).sum())
        if name == "attack_eval_cw":
            assert len(labels) - right == counts
        else:
            assert [int((view(images).argmax(dim=1) == labels).sum()), right] == list(counts)


def test_all_logits_of_a_network_without_attention():
    given = inputs("f32")
    model = model_of("resnet18", "f32")
    found = AllLogits(FrozenView(model))(given["x"][:2])
    assert found.shape == (2, 1, 10)
