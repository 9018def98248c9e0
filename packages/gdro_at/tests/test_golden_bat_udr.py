"""BAT's searches and losses and UDR's soft attacks against the official numbers, in both precisions."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from grfal_golden import DTYPES, close, images_of, load, normal_noise, torchvision_resnet18, uniform_noise

from gdro_at.baselines.bat import bat_terms, first_adversarial, last_clean, published_order
from gdro_at.baselines.udr import KINDS, soft_attack

pytestmark = pytest.mark.golden
SEARCHES = ("last", "first")


@pytest.fixture(scope="module")
def bat():
    return load("bat.npz")


@pytest.fixture(scope="module")
def wrm():
    return load("wrm.npz")


def start_of(arrays, name, suffix):
    images = images_of(arrays, suffix)
    noise = normal_noise(arrays[f"noise_{name}{'clean' if name == 'last' else 'adv'}"], suffix)
    return (images + float(arrays["init_scale"]) * noise).clamp(0, 1)


def search(arrays, name, suffix, steps=None):
    model = torchvision_resnet18(arrays, suffix)
    images, labels = images_of(arrays, suffix), torch.from_numpy(arrays["y"]).long()
    with torch.no_grad():
        natural = model(images)
    settings = {
        "start": start_of(arrays, name, suffix),
        "natural_logits": natural,
        "eps": float(arrays["eps"]),
        "step_size": float(arrays["step"]),
        "steps": int(arrays["iters"]) if steps is None else steps,
        "official": True,
    }
    if name == "last":
        return last_clean(model, images, labels, **settings)
    return first_adversarial(model, images, labels, tau=int(arrays["tau"]), **settings)


@functools.cache
def found(name):
    return search(load("bat.npz"), name, "f64")


def recorded(result):
    """Return the published ``batch_sizes`` and ``losses``: of the iterations that somebody was left for."""
    steps = torch.arange(len(result.values))[:, None]
    active = (result.exits < 0) | (result.exits >= steps)
    sizes = active.sum(dim=1)
    return sizes[sizes > 0], result.values.sum(dim=1)[sizes > 0]


def rows_of(arrays, name, exits):
    order = published_order(exits)
    return order[torch.from_numpy(arrays["permutation"])] if name == "first" else order


@pytest.mark.parametrize("name", SEARCHES)
def test_searches(bat, name):
    result = found(name)
    labels = torch.from_numpy(bat["y"]).long()
    order, rows = published_order(result.exits), rows_of(bat, name, result.exits)
    assert np.array_equal(result.exits, bat[f"f64__{name}__exit_iter_of_sample"])
    assert np.array_equal(order, bat[f"f64__{name}__index_flag"])
    assert np.array_equal(rows, bat[f"f64__{name}__sample_of_row"])
    assert np.array_equal(labels[rows], bat[f"f64__{name}__target"])
    sizes, losses = recorded(result)
    assert np.array_equal(sizes, bat[f"f64__{name}__batch_sizes"])
    close(losses, bat[f"f64__{name}__losses"], 1e-10)
    delta = (result.images - images_of(bat, "f64"))[rows]
    assert np.abs(delta.numpy() - bat[f"{name}__delta"]).max() < 2e-9


@pytest.mark.parametrize("name", SEARCHES)
def test_one_float32_step(bat, name):
    first, second = (search(bat, name, suffix, steps=1).images for suffix in ("f32", "f64"))
    assert ((first.double() - second).abs() < 1e-6).double().mean() >= 0.998


def step_from_stored(arrays, suffix):
    """Return the model after backward, the logits by name and the terms, from the stored perturbations."""
    model = torchvision_resnet18(arrays, suffix).train()
    images, labels = images_of(arrays, suffix), torch.from_numpy(arrays["y"]).long()
    rows, examples = {}, {}
    for name in SEARCHES:
        stored = torch.from_numpy(arrays[f"{name}__delta"]).to(DTYPES[suffix])
        by_sample = torch.empty_like(stored)
        by_sample[torch.from_numpy(arrays[f"f64__{name}__sample_of_row"])] = stored
        if suffix == "f64":  # not rounded for storage
            by_sample = found(name).images - images
        rows[name] = torch.from_numpy(arrays[f"{suffix}__{name}__sample_of_row"])
        examples[name] = (images + by_sample)[rows[name]]
    last, first = model(examples["last"]), model(examples["first"])
    clean = model(images[rows["first"]])
    terms = bat_terms(last, first, clean, labels[rows["last"]])
    parts = torch.stack(
        [terms.clean.mean(), float(arrays["beta"]) * terms.robust.mean(), terms.uniform.mean()]
    )
    parts.sum().backward()
    return model, {"lastclean": last, "firstadv": first, "clean": clean}, parts


@pytest.mark.parametrize("suffix", DTYPES)
def test_training_step(bat, suffix):
    model, logits, parts = step_from_stored(bat, suffix)
    of_logits, of_losses, of_gradients = (1e-10, 1e-10, 1e-9) if suffix == "f64" else (1e-4, 1e-3, 2e-2)
    close(parts, bat[f"{suffix}__terms"], of_losses)
    for name, value in logits.items():
        close(value, bat[f"{suffix}__logits_{name}"], of_logits)
    norms = torch.stack([parameter.grad.norm() for parameter in model.parameters()])
    close(norms, bat[f"{suffix}__grad_norms"], of_gradients)
    close(model.fc.weight.grad, bat[f"{suffix}__grad_fc_weight"], of_gradients)
    close(model.fc.bias.grad, bat[f"{suffix}__grad_fc_bias"], of_gradients)
    close(model.bn1.weight.grad, bat[f"{suffix}__grad_bn1_weight"], of_gradients)


@pytest.mark.parametrize("suffix", DTYPES)
def test_loss_of_given_logits(bat, suffix):
    names = ("lastclean", "firstadv", "clean")
    logits = [torch.from_numpy(bat[f"loss_{name}"]).to(DTYPES[suffix]).requires_grad_() for name in names]
    terms = bat_terms(*logits, torch.from_numpy(bat["loss_target"]).long())
    parts = torch.stack([terms.clean.mean(), float(bat["beta"]) * terms.robust.mean(), terms.uniform.mean()])
    parts.sum().backward()
    tolerance = 1e-12 if suffix == "f64" else 1e-5
    close(parts, bat[f"{suffix}__loss_terms"], tolerance)
    for name, value in zip(names, logits, strict=True):
        close(value.grad, bat[f"{suffix}__loss_grad_{name}"], tolerance)


@functools.cache
def soft(setting, kind, suffix, steps=None):
    arrays = load("wrm.npz")
    images = images_of(arrays, suffix)
    noise = uniform_noise(arrays["noise_uniform"], float(arrays["init_scale"]), suffix)
    numbers = {name: float(arrays[f"{setting}_{name}"]) for name in ("eps", "alpha", "tau", "lamda", "iters")}
    whole = int(numbers.pop("iters"))
    return soft_attack(
        torchvision_resnet18(arrays, suffix),
        images,
        torch.from_numpy(arrays["y"]).long(),
        start=noise,
        kind=kind,
        steps=whole if steps is None else steps,
        **numbers,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", ["published", "soft"])
def test_soft_attacks(wrm, setting, kind):
    delta = soft(setting, kind, "f64")
    assert np.abs(delta.numpy() - wrm[f"{setting}__{kind}__delta"]).max() < 2e-9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", ["published", "soft"])
def test_one_float32_soft_step(setting, kind):
    first, second = (soft(setting, kind, suffix, steps=1) for suffix in ("f32", "f64"))
    # two halves are two steps, the second of them from where the first went
    share = 0.998 if kind == "uni" else 0.99
    assert ((first.double() - second).abs() < 1e-6).double().mean() >= share


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", ["published", "soft"])
def test_a_share_of_one_is_a_projection(wrm, setting, kind):
    eps, alpha, tau, lamda = (float(wrm[f"{setting}_{name}"]) for name in ("eps", "alpha", "tau", "lamda"))
    if lamda * alpha == tau:
        assert soft(setting, kind, "f64").abs().max() <= eps * (1 + 1e-9)
