"""TRADES (both norms) and MART, attack and loss, against the official implementation's numbers."""

import functools

import golden
import numpy as np
import pytest
import torch

from robust_core import losses
from robust_core.attacks import pgd
from robust_core.models import FrozenView

pytestmark = pytest.mark.golden

DTYPES = {"f32": torch.float32, "f64": torch.float64}
LOSSES = ("trades", "mart", "trades_l2")
BETA = 6.0
CASES = [(name, suffix) for name in LOSSES for suffix in DTYPES]


def settings_of(name, steps):
    """The inner attack: its budget, step (in L2 it depends on the number of steps) and objective."""
    if name == "trades_l2":
        radius = float(golden.load("part", "loss_trades_l2.npz")["epsilon_l2"])
        return {"eps": radius, "step_size": 2 * radius / steps, "norm": "l2", "loss": "kl"}
    return {"eps": 8 / 255, "step_size": 2 / 255, "loss": "kl" if name == "trades" else "ce"}


@functools.cache
def images_and_labels(suffix):
    arrays = golden.load("part", "inputs.npz")
    count = len(arrays["z_normal"])
    return torch.from_numpy(arrays["x"][:count]).to(DTYPES[suffix]), torch.from_numpy(arrays["y"][:count])


@functools.cache
def iterates(name, suffix, steps):
    """All iterates of the inner attack, started at ``x + 0.001 z``, which is clipped to nothing."""
    images, labels = images_and_labels(suffix)
    noise = torch.from_numpy(golden.load("part", "inputs.npz")["z_normal"]).to(DTYPES[suffix])
    model = golden.recipe_model("resnet18", DTYPES[suffix])
    # The first KL gradient is a small difference of large logits: in float32 the view's own rounding, which
    # comes from other convolutions, decides more of its signs than the comparison allows.
    network = FrozenView(model) if suffix == "f64" else lambda x: model(x)
    start = images + 0.001 * noise
    seen = []
    pgd(
        network,
        images,
        labels,
        steps=steps,
        start=start,
        observe=lambda x, rows: seen.append(x),
        **settings_of(name, steps),
    )
    return seen[-steps:]


@functools.lru_cache(maxsize=2)  # networks are large
def training_step(name, suffix):
    """Terms, gradients and batch-norm statistics of one training step in the published order of forwards."""
    images, labels = images_and_labels(suffix)
    if suffix == "f64":
        adversarial = iterates(name, suffix, 10)[-1]
    else:
        adversarial = torch.from_numpy(golden.load("part", f"loss_{name}.npz")["x_adv_10_f32"])
    model = golden.recipe_model("resnet18", DTYPES[suffix]).train()
    if name == "mart":
        natural_logits, adversarial_logits = model(images), model(adversarial)
        terms = losses.mart_terms(natural_logits, adversarial_logits, labels)
        loss = losses.mart(natural_logits, adversarial_logits, labels, beta=BETA)
        forwards = 2
    else:
        first, adversarial_logits, third = model(images), model(adversarial), model(images)
        natural = losses.trades_terms(first, adversarial_logits, labels).natural
        robust = losses.trades_terms(third, adversarial_logits, labels).robust
        terms, loss = losses.TradesTerms(natural, robust), natural + BETA * robust
        # The two natural passes give the same logits, so one suffices for the loss.
        together = losses.trades(third, adversarial_logits, labels, beta=BETA)
        assert torch.allclose(together, loss, rtol=1e-10 if suffix == "f64" else 1e-5)
        forwards = 3
    loss.backward()
    return model, terms, loss, forwards


def close(found, reference, tolerance):
    """Compare relative to the largest absolute value of the reference."""
    difference = np.abs(np.asarray(found, dtype=np.float64) - reference)
    assert np.nanmax(difference) <= tolerance * np.nanmax(np.abs(reference))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_inner_attack_in_float64(name, steps):
    arrays = golden.load("part", f"loss_{name}.npz")
    found = iterates(name, "f64", steps if name == "trades_l2" else 10)[steps - 1]
    whole = torch.from_numpy(arrays[f"x_adv_{steps}_f64"])
    assert (found[: len(whole)] - whole).abs().max() < 1e-10
    close(np.stack([golden.fingerprint(image) for image in found]), arrays[f"x_adv_{steps}_f64_fp"], 1e-10)
    if name == "trades_l2":
        images, _ = images_and_labels("f64")
        close((found - images).flatten(1).norm(dim=1), arrays[f"l2norm_{steps}_f64"], 1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_inner_attack_in_float32(name):
    arrays = golden.load("part", f"loss_{name}.npz")
    found = iterates(name, "f32", 1)[0]
    reference = torch.from_numpy(arrays["x_adv_1_f32"])
    assert ((found[: len(reference)] - reference).abs() <= 1e-6).double().mean() >= 0.999
    if name == "trades_l2":
        images, _ = images_and_labels("f32")
        close((found - images).flatten(1).norm(dim=1), arrays["l2norm_1_f32"], 1e-5)


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_loss_and_terms(name, suffix):
    arrays, (_, terms, loss, _) = golden.load("part", f"loss_{name}.npz"), training_step(name, suffix)
    tolerance = {"f32": 1e-5, "f64": 1e-10}[suffix]
    names = {"natural": "natural", "robust": "robust", "cross_entropy": "bce_ce", "margin": "bce_margin"}
    close(loss.item(), arrays[f"loss_{suffix}"], tolerance)
    for field, value in terms._asdict().items():
        close(value.item(), arrays[f"loss_{names[field]}_{suffix}"], tolerance)


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_parameter_gradients(name, suffix):
    arrays, (model, *_) = golden.load("part", f"loss_{name}.npz"), training_step(name, suffix)
    tolerance = {"f32": 1e-3, "f64": 1e-9}[suffix]
    parameters = dict(model.named_parameters())
    order = golden.load_json("part", "models.json")["resnet18"]["parameters"]
    norms = [parameters[entry if isinstance(entry, str) else entry[0]].grad.norm().item() for entry in order]
    close(norms, arrays[f"grad_norm_{suffix}"], tolerance)
    slices = {
        "conv1.weight": slice(0, 8),
        "bn1.weight": slice(None),
        "layer4.1.bn2.bias": slice(0, 64),
        "linear.weight": (slice(None), slice(0, 64)),
        "linear.bias": slice(None),
    }
    for parameter, part in slices.items():
        close(parameters[parameter].grad[part].numpy(), arrays[f"grad:{parameter}_{suffix}"], tolerance)


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_batch_norm_statistics(name, suffix):
    arrays, (model, _, _, forwards) = golden.load("part", f"loss_{name}.npz"), training_step(name, suffix)
    tolerance = {"f32": 1e-5, "f64": 1e-10}[suffix]
    buffers = dict(model.named_buffers())
    for statistic in ("running_mean", "running_var"):
        close(buffers[f"bn1.{statistic}"].numpy(), arrays[f"bn1_{statistic}_{suffix}"], tolerance)
    assert buffers["bn1.num_batches_tracked"].item() == arrays["bn1_num_batches"]
    assert forwards == arrays["n_train_forwards"]
