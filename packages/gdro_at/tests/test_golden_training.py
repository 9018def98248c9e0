"""Training steps of the official implementation: two of ResNet-18, six of a small net with an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from grfal_golden import close, filled, images_of, load, normal_noise, torchvision_resnet18, uniform_noise
from torch import nn

from gdro_at.attacks import TrainingAttack
from gdro_at.statistics import Statistics
from gdro_at.units import unit_means
from gdro_at.weighted import GroupWeighted
from gdro_at.weights import OFFICIAL_AXES, GroupRule, RuleState, step
from robust_core.attacks.engine import ascend
from robust_core.attacks.objectives import cross_entropy, kl_to
from robust_core.data import Batch
from robust_core.losses import kl_divergence
from robust_core.models import FrozenView
from robust_core.training.method import StepContext

PRECISIONS = ("f64", "f32")


class SmallNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 2)

    def forward(self, x):
        x = nn.functional.softplus(self.bn1(self.conv1(x)))
        x = nn.functional.softplus(self.bn2(self.conv2(x)))
        return self.fc(x.mean(dim=(2, 3)))


@dataclass(frozen=True)
class GoldenContext(StepContext):
    noise: dict = field(default_factory=dict)

    def normal(self, purpose, like):
        assert purpose == "start"
        return self.noise["normal"]


class Stored:
    """Stands for the attack: the stored perturbation, from which a float32 run is compared."""

    def __init__(self, delta):
        self.delta = delta

    def __call__(self, images, labels, context):
        return images + self.delta


def method_of(arrays, *, eps, iters, eta, family):
    rule = {
        "robust_step_size": eta,
        "limit_eps": float(arrays["limit_eps"]),
        "generalization_adjustment": (float(arrays["adj"]),),
        "train_grad": True,
        "limit_nat": True,
        "limit_adv": True,
        **OFFICIAL_AXES,
    }
    objective = "kl" if family == "trades" else "ce"
    attack = TrainingAttack(eps, iters, objective=objective, noise=0.0001, clip_start=False)
    method = GroupWeighted(
        "published",
        family=family,
        attack=attack,
        rule=rule,
        own_weights=family == "trades",
        beta=float(arrays.get("beta", 6.0)),
        forwards=2,
        log_every=1000,
    )
    method.unit_counts = torch.from_numpy(arrays["group_counts"]).float()
    return method


def begin(method, dtype, steps):
    method.group_rule = method._rule()
    method.state = RuleState.start(method.group_rule, dtype=dtype)
    method.statistics = Statistics.start(method.units, dtype)
    method.epoch_steps = steps
    method.names = tuple(f"group {k}" for k in range(method.units))


def context_of(model, index, steps, noise, size):
    return GoldenContext(
        seed=0,
        epoch=0,
        step=index,
        phase_step=index,
        phase_steps=steps + 1,
        view=FrozenView(model),
        rows=(0, size),
        global_size=size,
        noise={"normal": noise},
    )


def one_step(method, model, optimizer, images, groups, noise, index, steps):
    batch = Batch(images, groups // 2, torch.arange(len(images)), groups=groups, global_size=len(images))
    context = context_of(model, index, steps, noise, len(images))
    model.train()
    optimizer.zero_grad(set_to_none=True)
    result = method.loss(model, batch, context)
    result.loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    optimizer.step()
    return result, gradients


def check_rule(method, arrays, prefix, index, tolerance):
    close(method.state.natural_weights, arrays[f"{prefix}adv_probs"][index], tolerance)
    close(method.state.adversarial_weights, arrays[f"{prefix}adv_trade_probs"][index], tolerance)
    close(method.state.average, arrays[f"{prefix}exp_avg_loss"][index], tolerance)
    statistics = method.statistics
    close(statistics.loss, arrays[f"{prefix}avg_group_loss"][index], tolerance)
    close(statistics.accuracy, arrays[f"{prefix}avg_group_acc"][index], tolerance)
    close(statistics.processed, arrays[f"{prefix}processed_data_counts"][index], 0)
    close(statistics.actual, arrays[f"{prefix}avg_actual_loss"][index], tolerance)
    for name, value in (
        ("avg_per_sample_loss", statistics.average_loss),
        ("avg_acc", statistics.average_accuracy),
    ):
        if f"{prefix}{name}" in arrays:
            close(value, arrays[f"{prefix}{name}"][index], tolerance)


@pytest.mark.golden
@pytest.mark.parametrize("suffix", [pytest.param("f64", marks=pytest.mark.slow), "f32"])
def test_two_steps_of_resnet18(suffix):
    arrays = load("gdro_at_step.npz")
    model = torchvision_resnet18(arrays, suffix)
    double = suffix == "f64"
    dtype = torch.float64 if double else torch.float32
    iters = arrays[f"{suffix}__attack_losses"].shape[1]
    eta = float(arrays["robust_step_size"])
    method = method_of(arrays, eps=float(arrays["eps"]), iters=iters, eta=eta, family="trades")
    begin(method, dtype, 2)
    rates = {name: float(arrays[name]) for name in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD(model.parameters(), **rates)
    seen = []
    model.register_forward_hook(lambda _m, _i, logits: seen.append(logits.detach()))
    images, noise = images_of(arrays, suffix), normal_noise(arrays["noise_normal"], suffix)
    groups = torch.from_numpy(arrays["g"]).long()
    for index in range(len(images)):
        if double:
            found = method.attack.climb(
                context_of(model.eval(), index, 2, None, len(groups[index])),
                images[index],
                groups[index] // 2,
                noise[index],
            )
            difference = (found - images[index]).numpy() - arrays["delta"][index]
            assert np.abs(difference).max() <= 2e-9
            losses = attack_losses(method, model, images[index], noise[index])
            close(losses, arrays[f"{suffix}__attack_losses"][index], 9e-13 * 100)
        else:
            method.attack = Stored(torch.from_numpy(arrays["delta"][index]))
        seen.clear()
        result, gradients = one_step(
            method, model, optimizer, images[index], groups[index], noise[index], index, 2
        )
        tolerance = {"logits": 1e-10, "loss": 1e-10, "rule": 1e-10, "gradient": 1e-9}
        if not double:
            tolerance = {"logits": 1e-4, "loss": 1e-3, "rule": 1e-3, "gradient": 5e-2}
        # the last passes are natural, adversarial, natural (the view of the attack copies the hook)
        close(seen[-3], arrays[f"{suffix}__logits_nat"][index], tolerance["logits"])
        close(seen[-2], arrays[f"{suffix}__logits_adv"][index], tolerance["logits"])
        close(result.loss, arrays[f"{suffix}__returned_loss"][index], tolerance["loss"])
        labels = groups[index] // 2
        natural = nn.functional.cross_entropy(seen[-3], labels, reduction="none")
        close(natural, arrays[f"{suffix}__nat_loss"][index], tolerance["loss"])
        robust = float(arrays["beta"]) * kl_divergence(seen[-1], seen[-2])
        close(robust, arrays[f"{suffix}__rob_loss"][index], 1e-10 if double else 2e-2)
        check_rule(method, arrays, f"{suffix}__", index, tolerance["rule"])
        norms = torch.stack([gradient.norm() for gradient in gradients])
        close(norms, arrays[f"{suffix}__grad_norms"][index], tolerance["gradient"])
        by_name = dict(zip(dict(model.named_parameters()), gradients, strict=True))
        close(by_name["fc.weight"], arrays[f"{suffix}__grad_fc_weight"][index], tolerance["gradient"])
        close(by_name["fc.bias"], arrays[f"{suffix}__grad_fc_bias"][index], tolerance["gradient"])
        close(by_name["bn1.weight"], arrays[f"{suffix}__grad_bn1_weight"][index], tolerance["gradient"])
        close(
            by_name["conv1.weight"][:8], arrays[f"{suffix}__grad_conv1_first8"][index], tolerance["gradient"]
        )
        after = model.state_dict()
        after_norms = torch.stack([parameter.norm() for parameter in model.parameters()])
        close(after_norms.detach(), arrays[f"{suffix}__param_norms"][index], tolerance["loss"])
        close(after["fc.weight"], arrays[f"{suffix}__fc_weight"][index], tolerance["loss"])
        close(after["fc.bias"], arrays[f"{suffix}__fc_bias"][index], tolerance["loss"])
        for layer, name in (("bn1", "bn1"), ("layer4.1.bn2", "layer4_bn2")):
            for kind in ("mean", "var"):
                wanted = arrays[f"{suffix}__{name}_running_{kind}"][index]
                close(after[f"{layer}.running_{kind}"], wanted, tolerance["loss"])
        assert after["bn1.num_batches_tracked"] == arrays[f"{suffix}__num_batches_tracked"][index]


def attack_losses(method, model, images, noise):
    """Return the objective before each step, summed over the images."""
    view = FrozenView(model.eval())
    objective, visited = kl_to(view(images).detach()), []
    attack, labels = method.attack, torch.zeros(len(images), dtype=torch.int64)
    ascend(
        view,
        images,
        labels,
        start=attack.begin(images, noise),
        eps=attack.eps,
        step_size=attack.step,
        steps=attack.steps,
        objective=objective,
        visit=lambda iterate: visited.append(objective(view(iterate), labels).detach().sum()),
    )
    return torch.stack(visited[:-1])


def flat(tensors):
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def buffers_of(model):
    state = model.state_dict()
    names = [
        f"{bn}.{kind}"
        for bn in ("bn1", "bn2")
        for kind in ("running_mean", "running_var", "num_batches_tracked")
    ]
    return torch.cat([state[name].double().reshape(-1) for name in names])


@pytest.mark.golden
@pytest.mark.parametrize("suffix", PRECISIONS)
@pytest.mark.parametrize("setting", ["A", "B", "C"])
def test_six_steps_of_a_small_net_and_their_evaluation(setting, suffix):
    arrays = load("gdro_at_chain.npz")
    double = suffix == "f64"
    dtype = torch.float64 if double else torch.float32
    model = filled(SmallNet(), arrays, suffix)
    prefix = f"{setting}__{suffix}__"
    values = {name: float(arrays[f"{setting}_{name}"]) for name in ("eps", "robust_step_size", "lr")}
    iters = int(arrays[f"{setting}_iters"])
    family = "pgd" if setting == "C" else "trades"
    method = method_of(arrays, eps=values["eps"], iters=iters, eta=values["robust_step_size"], family=family)
    images, noise = images_of(arrays, suffix), normal_noise(arrays["noise_normal"], suffix)
    groups = torch.from_numpy(arrays["g"]).long()
    begin(method, dtype, len(images))
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=values["lr"],
        momentum=float(arrays["momentum"]),
        weight_decay=float(arrays["weight_decay"]),
    )
    loss, gradient = (1e-10, 1e-9) if double else (5e-3, 5e-3)
    snapshots = arrays["snapshot_steps"].tolist()
    for index in range(len(images)):
        delta = arrays[f"{setting}__delta"][index]
        if double:
            context = context_of(model.eval(), index, len(images), None, len(groups[index]))
            found = method.attack.climb(context, images[index], groups[index] // 2, noise[index])
            assert np.abs((found - images[index]).numpy() - delta).max() <= 2e-9
        else:
            method.attack = Stored(torch.from_numpy(delta))
        result, gradients = one_step(
            method, model, optimizer, images[index], groups[index], noise[index], index, len(images)
        )
        close(result.loss, arrays[f"{prefix}returned_loss"][index], loss)
        check_rule(method, arrays, prefix, index, loss)
        close(buffers_of(model), arrays[f"{prefix}buffers"][index], loss)
        if index in snapshots:
            place = snapshots.index(index)
            close(flat(model.parameters()), arrays[f"{prefix}params"][place], loss)
            if double:
                close(flat(gradients), arrays[f"{prefix}grads"][place], gradient)
        if index == int(arrays["reset_after"][0]):
            method.state = method.state.reset()
            method.statistics = Statistics.start(method.units, dtype)
    check_evaluation(model.eval(), arrays, setting, suffix, values["robust_step_size"], loss)


def check_evaluation(model, arrays, setting, suffix, eta, tolerance):
    eps, prefix = 0.00196, f"{setting}__{suffix}__"
    images = images_of(arrays, suffix, "eval_x_base")
    groups = torch.from_numpy(arrays["eval_g"]).long()
    start = images + uniform_noise(arrays["eval_noise_uniform"], 0.0001, suffix)
    delta = arrays[f"{setting}__eval_delta"]
    if suffix == "f64":
        attacked = ascend(
            FrozenView(model),
            images,
            groups // 2,
            start=start,
            eps=eps,
            step_size=eps / 4,
            steps=10,
            objective=cross_entropy,
        )
        assert np.abs((attacked - images).numpy() - delta).max() <= 2e-9
    else:
        attacked = images + torch.from_numpy(delta)
    logits = model(attacked).detach()
    close(logits, arrays[f"{prefix}eval_logits"], tolerance)
    rule = GroupRule(
        training_counts=tuple(arrays["group_counts"].tolist()),
        robust_step_size=eta,
        train_grad=True,
        limit_nat=True,
        limit_eps=float(arrays["limit_eps"]),
        **OFFICIAL_AXES,
    )
    state = RuleState.start(rule, dtype=logits.dtype)
    statistics = Statistics.start(rule.units, logits.dtype)
    for rows in torch.arange(len(logits)).chunk(2):
        labels = groups[rows] // 2
        losses = nn.functional.cross_entropy(logits[rows], labels, reduction="none")
        hits = (logits[rows].argmax(dim=1) == labels).to(losses.dtype)
        natural, right = unit_means([losses, hits], groups[rows], rule.units)
        taken = step(rule, state, natural)
        state = taken.state
        statistics = statistics.updated(natural, right.means, taken.natural_weights, taken.actual)
    close(state.natural_weights, arrays[f"{prefix}eval_adv_probs"], tolerance)
    close(statistics.loss, arrays[f"{prefix}eval_avg_group_loss"], tolerance)
    close(statistics.accuracy, arrays[f"{prefix}eval_avg_group_acc"], tolerance)
    close(statistics.actual, arrays[f"{prefix}eval_avg_actual_loss"], tolerance)
    close(statistics.average_loss, arrays[f"{prefix}eval_avg_per_sample_loss"], tolerance)
    close(statistics.average_accuracy, arrays[f"{prefix}eval_avg_acc"], tolerance)
