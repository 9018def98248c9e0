"""Networks and plain attacks against the official numbers: every step in float64, the first one in float32."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from grfal_golden import close, filled, images_of, load, normal_noise, recipe_state, uniform_noise
from torch import Tensor

from gdro_at.networks import build_network
from robust_core.attacks import objectives
from robust_core.attacks.engine import ascend, natural_logits
from robust_core.models import FrozenView

pytestmark = pytest.mark.golden

RESNET, PREACT = "attacks_resnet18_64.npz", "attacks_preact18_224.npz"
NAMES = {RESNET: "resnet18", PREACT: "pre18"}
LOGITS = {"f64": 1e-10, "f32": 1e-5}
ATTACKS = [
    *((RESNET, attack) for attack in ("trades", "pgd_train", "pgd_test")),
    *((PREACT, attack) for attack in ("trades", "pgd_test")),
]


def network(file, suffix):
    arrays = load(file)
    size = arrays["x_base"].shape[-1] * int(arrays["x_factor"])
    classes = len(arrays["head_bias"])
    model = build_network(NAMES[file], classes, image_size=size, mean=None, std=None, seed=0)
    return filled(model, arrays, suffix)


class Ascent(NamedTuple):
    """The iterates of an attack, the objective before each step, and the logits of the result."""

    iterates: list[Tensor]
    losses: list[float]
    logits: Tensor
    images: Tensor


def start_of(arrays, attack, images, suffix):
    """Return the start and whether the objective is the divergence, as the golden README has them."""
    noise = {
        kind: arrays.get(f"noise_{kind}", arrays.get(f"noise_{kind}_base")) for kind in ("normal", "uniform")
    }
    factor = images.shape[-1] // noise["normal"].shape[-1]
    noise = {kind: values.repeat(factor, axis=-1).repeat(factor, axis=-2) for kind, values in noise.items()}
    radius, eps = float(arrays["init_scale"]), float(arrays["eps"])
    if attack in ("trades", "pgd_train"):
        return images + radius * normal_noise(noise["normal"], suffix)
    if attack == "pgd_test":
        return images + uniform_noise(noise["uniform"], radius, suffix).to(images)
    return (images + uniform_noise(noise["uniform"], eps, suffix).to(images)).clamp(0, 1)


@functools.cache
def ascent(file, attack, suffix, steps):
    arrays = load(file)
    images = images_of(arrays, suffix)
    labels = torch.from_numpy(arrays["y"].astype(np.int64))
    view = FrozenView(network(file, suffix))
    objective = objectives.cross_entropy
    if attack == "trades":
        objective = objectives.kl_to(natural_logits(view, images))
    # the official sum over the batch, or mean
    scale = 1.0 if attack == "trades" else 1.0 / len(images)
    iterates, losses = [], []

    def told(logits, labels):
        values = objective(logits, labels)
        losses.append(scale * float(values.detach().sum()))
        return values

    result = ascend(
        view,
        images,
        labels,
        start=start_of(arrays, attack, images, suffix),
        eps=float(arrays["eps"]),
        step_size=float(arrays["step"]),
        steps=steps,
        objective=told,
        visit=lambda iterate: iterates.append(iterate.clone()),
    )
    with torch.no_grad():
        return Ascent(iterates, losses, view(result), images)


@pytest.mark.parametrize("suffix", ["f64", "f32"])
@pytest.mark.parametrize("file", [RESNET, PREACT])
def test_logits(file, suffix):
    arrays = load(file)
    model = network(file, suffix)
    images = images_of(arrays, suffix)
    with torch.no_grad():
        close(model(images), arrays[f"{suffix}__logits_clean"], LOGITS[suffix])
        close(FrozenView(model)(images), arrays[f"{suffix}__logits_clean"], LOGITS[suffix])


def test_the_state_dict_of_pre18():
    arrays = load(PREACT)
    state = network(PREACT, "f32").state_dict()
    assert list(state) == list(arrays["state_names"])
    shapes = ["x".join(map(str, tensor.shape)) for tensor in state.values()]
    assert shapes == list(arrays["state_shapes"])
    assert recipe_state(network(PREACT, "f32")).keys() == state.keys()


@pytest.mark.parametrize("suffix", ["f64", "f32"])
def test_pre18_in_training_mode(suffix):
    arrays = load(PREACT)
    model = network(PREACT, suffix).train()
    with torch.no_grad():
        logits = model(images_of(arrays, suffix))
    close(logits, arrays[f"{suffix}__logits_train_mode"], LOGITS[suffix])
    close(model.bn1.running_mean, arrays[f"{suffix}__bn1_running_mean_after"], LOGITS[suffix])
    found = model.get_submodule("layer4.1.bn2").running_var
    close(found, arrays[f"{suffix}__layer4_bn2_running_var_after"], LOGITS[suffix])


def strided(file, arrays, delta):
    """Return the elements of a perturbation that the file keeps of the early steps."""
    step = int(arrays["stride"]) if file == PREACT else 2
    return delta[:, :, ::step, ::step]


def stored(file, arrays, attack, steps):
    """Return the perturbation after some steps as the file has it, and whether it is the whole."""
    if file == PREACT:
        return arrays[f"{attack}__delta{steps}_strided"], False
    whole = f"{attack}__delta{steps}"
    return (arrays[whole], True) if whole in arrays else (arrays[f"{whole}_strided2"], False)


@pytest.mark.parametrize(
    ("file", "attack"),
    [
        pytest.param(file, attack, marks=[] if (file, attack) == (RESNET, "trades") else [pytest.mark.slow])
        for file, attack in ATTACKS
    ],
)
def test_attack_in_float64(file, attack):
    arrays = load(file)
    steps = len(arrays[f"{attack}__f64__losses"])
    found = ascent(file, attack, "f64", steps)
    for after in (1, 2, steps):
        delta = found.iterates[after] - found.images
        reference, whole = stored(file, arrays, attack, after)
        ours = delta if whole else strided(file, arrays, delta)
        assert np.abs(ours.numpy() - reference).max() < 2e-9
        if file == PREACT:
            for name, value in (("mean", delta.mean((2, 3))), ("meanabs", delta.abs().mean((2, 3)))):
                expected = arrays[f"{attack}__f64__delta{after}_{name}"]
                assert np.abs(value.numpy() - expected).max() < 2e-9
    close(torch.tensor(found.losses, dtype=torch.float64), arrays[f"{attack}__f64__losses"], 1e-10)
    close(found.logits, arrays[f"{attack}__f64__logits_adv"], 1e-10)


@pytest.mark.parametrize(("file", "attack"), ATTACKS)
def test_one_step_in_float32(file, attack):
    arrays = load(file)
    found = ascent(file, attack, "f32", 1)
    ours = strided(file, arrays, found.iterates[1] - found.images).numpy()
    reference, _ = stored(file, arrays, attack, 1)
    assert (np.abs(ours - reference) < 1e-6).mean() >= 0.998


def test_two_steps_from_the_edge_of_the_ball():
    arrays = load(RESNET)
    found = ascent(RESNET, "madry_cent", "f64", 2)
    ours = strided(RESNET, arrays, found.iterates[2] - found.images).numpy()
    assert np.abs(ours - arrays["madry_cent__delta2_strided2"]).max() < 2e-9
