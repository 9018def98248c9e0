"""CGD in the loop: gradients of unit means, the parameters that are compared, official and corrected steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from grfal_golden import DTYPES, close, load
from grouped_runs import check_resume, grouped_run, one_phase, step_lines
from torch import nn

from gdro_at.attacks import TrainingAttack
from gdro_at.baselines.cgd import CGD, chosen_parameters, unit_gradients
from gdro_at.networks import build_network
from gdro_at.units import unit_means
from gdro_at.weights import GroupRule, RuleState, step
from robust_core.losses import kl_divergence

ATTACK = TrainingAttack(8 / 255, steps=1)


class SmallNet(nn.Module):
    """The network of ``cgd.npz``."""

    def __init__(self, arrays, head_factor):
        super().__init__()
        for name in ("layer1", "layer3", "layer4", "fc"):
            weight = torch.from_numpy(arrays[f"model__{name}.weight"])
            bias = torch.from_numpy(arrays[f"model__{name}.bias"])
            factor = head_factor if name == "fc" else 1
            layer = nn.Linear(*weight.shape[::-1])
            layer.weight.data, layer.bias.data = weight * factor, bias * factor
            self.add_module(name, layer)

    def forward(self, x):
        return self.fc(self.layer4(self.layer3(self.layer1(x).tanh()).tanh()).tanh())


@pytest.mark.golden
@pytest.mark.parametrize("suffix", DTYPES)
@pytest.mark.parametrize(("scenario", "eta"), [("s001", 0.01), ("s1", 1.0), ("s1_at", 1.0), ("s5", 5.0)])
def test_gradients_give_the_official_weights(scenario, eta, suffix):
    arrays = load("cgd.npz")
    dtype = DTYPES[suffix]
    model = SmallNet(arrays, 40 if scenario == "s5" else 1).to(dtype)
    rule = GroupRule(
        training_counts=tuple(arrays["group_counts"].tolist()),
        weighting="cgd",
        generalization_adjustment=(2.0,),
        robust_step_size=eta,
        limit_adv=True,
    ).official()
    state = RuleState.start(rule, dtype)
    found = {"returned_loss": [], "adv_probs": [], "adv_trade_probs": []}
    for x, x_adv, y, g in zip(
        *(
            torch.from_numpy(arrays[name])
            for name in ("x", "x_adv", "y_s5" if scenario == "s5" else "y", "g")
        ),
        strict=True,
    ):
        logits, units = model(x.to(dtype)), g.long()
        natural = F.cross_entropy(logits, y.long(), reduction="none")
        values = [natural]
        if scenario == "s1_at":
            values.append(6 * kl_divergence(logits, model(x_adv.to(dtype))))
        means = unit_means(values, units, 4)
        gradients = unit_gradients(natural, units, means[0].counts, chosen_parameters(model, official=True))
        result = step(rule, state, *means, gradients=gradients)
        state = result.state
        for name, value in zip(
            found, (result.loss, state.natural_weights, state.adversarial_weights), strict=True
        ):
            found[name].append(value)
    tolerance = 1e-12 if suffix == "f64" else 5e-5 if scenario == "s5" else 1e-5
    for name, values in found.items():
        close(torch.stack(values), arrays[f"{scenario}__{suffix}__{name}"], tolerance)


def test_gradients_are_those_of_the_unit_means():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(9, 5, dtype=torch.float64), torch.arange(9) % 3
    units = torch.tensor([0, 0, 0, 0, 2, 2, 2, 3, 3])  # 1 is absent
    values = F.cross_entropy(model(x), y, reduction="none")
    parameters = chosen_parameters(model)
    found = unit_gradients(values, units, torch.bincount(units, minlength=4), parameters)
    for unit in range(4):
        if unit == 1:
            assert (found[unit] == 0).all()
            continue
        model.zero_grad()
        F.cross_entropy(model(x)[units == unit], y[units == unit]).backward()
        torch.testing.assert_close(found[unit], torch.cat([p.grad.flatten() for p in parameters]))
    model.zero_grad()
    values.mean().backward()  # the graph is still there, and nothing has been accumulated
    assert all(torch.isfinite(p.grad).all() for p in parameters)


def test_parameters_of_resnets_are_the_late_ones_and_the_head():
    for name, head in (("resnet18", "fc"), ("pre18", "linear"), ("resnet8-s2", "linear")):
        size = 32 if name == "resnet8-s2" else 64 if name == "resnet18" else 224
        model = build_network(name, 2, image_size=size, mean=None, std=None, seed=1)
        names = {id(value): key for key, value in model.named_parameters()}
        chosen = {names[id(value)] for value in chosen_parameters(model)}
        expected = {key for key in names.values() if key.startswith(("layer3.", "layer4.", f"{head}."))}
        assert chosen == expected
        official = {names[id(value)] for value in chosen_parameters(model, official=True)}
        assert official == {key for key in expected if not key.startswith("linear")}


def test_other_networks_give_all_their_parameters():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].bias.requires_grad_(False)
    assert len(chosen_parameters(model)) == 3


def cgd(**changes):
    return CGD("CGD", **{"robust_step_size": 0.5, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"generalization_adjustment": (1.0,)},
        {"official": True, "generalization_adjustment": (1.0, 1.0, 1.0, 1.0)},
        {"attack": ATTACK},
        {"attack": ATTACK, "official": True, "limit_adv": True},
        {"over": "class"},
    ],
)
def test_resumed_equals_uninterrupted(tmp_path, changes):
    whole = check_resume(tmp_path, one_phase(lambda: cgd(**changes), 4), stop=2)
    lines = step_lines(whole)
    units = 2 if "over" in changes else 4
    weights = torch.tensor([[line[f"weight_{unit}"] for unit in range(units)] for line in lines])
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(4), atol=1e-4, rtol=0)
    assert (weights[-1] - weights[0]).abs().max() > 1e-3
    assert f"weight_{units}" not in lines[0]


def first_loss(tmp_path, subject, relabel=lambda data: data):
    """Return the first step's result and batch; the groups may be changed."""
    run = grouped_run(tmp_path / str(len(list(tmp_path.iterdir()))), one_phase(lambda: subject))
    data = relabel(run.data)
    run.data = data
    (batch, *_) = run._batches(0, 0)
    context = run._context(0, 0, (0, len(batch)), len(batch))
    subject.begin_epoch(data, context)
    run.model.train()
    return subject.loss(run.model, batch, context), run, batch


def test_loss_is_the_weighted_sum_of_unit_means(tmp_path):
    subject = cgd()
    result, run, batch = first_loss(tmp_path, subject)
    logits = run.model.train()(batch.images)
    natural = F.cross_entropy(logits, batch.labels, reduction="none")
    weights = subject.state.natural_weights
    expected = sum(
        weights[unit] * natural[batch.groups == unit].mean() for unit in batch.groups.unique().tolist()
    )
    torch.testing.assert_close(result.loss, expected)


def test_corrected_adversarial_loss_is_of_both_terms_together(tmp_path):
    subject = cgd(attack=TrainingAttack(8 / 255, steps=0, noise=0.0))  # the images themselves: KL is 0
    result, _, _ = first_loss(tmp_path, subject)
    natural, _, _ = first_loss(tmp_path, cgd())
    torch.testing.assert_close(result.loss, natural.loss, atol=1e-5, rtol=0)
    assert result.metrics["robust_loss"].abs() < 1e-6


def test_permuted_units_give_permuted_weights(tmp_path):
    order = torch.tensor([2, 0, 3, 1])
    plain, permuted = cgd(), cgd()
    first, _, _ = first_loss(tmp_path, plain)

    def relabel(data):
        return replace(data, groups=order[data.groups])

    second, _, _ = first_loss(tmp_path, permuted, relabel)
    torch.testing.assert_close(first.loss, second.loss)
    torch.testing.assert_close(permuted.state.natural_weights[order], plain.state.natural_weights)


def test_units_that_are_absent_keep_their_weight(tmp_path):
    subject = cgd()
    _, _, batch = first_loss(tmp_path, subject)
    absent = sorted({*range(4)} - {*batch.groups.tolist()})
    assert absent, "the small group is not in the first batch"
    assert all(subject.state.natural_weights[unit] == 0.25 for unit in absent)


def test_before_the_first_epoch_there_are_no_weights(tmp_path):
    run = grouped_run(tmp_path, one_phase(cgd))
    (batch, *_) = run._batches(0, 0)
    with pytest.raises(RuntimeError, match="CGD has not begun"):
        cgd().loss(run.model, batch, run._context(0, 0, (0, 8), 8))
