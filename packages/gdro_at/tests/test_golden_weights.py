"""Group weights, losses and statistics against the official implementation's numbers."""

from __future__ import annotations

import grfal_golden
import loss_sequence
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gdro_at.units import UnitMeans, unit_means
from gdro_at.weights import GroupRule, RuleState, cgd_weights, constants, greedy_weights, step

pytestmark = pytest.mark.golden

FILES = ("loss_computer_m4.npz", "loss_computer_m6.npz")
SUFFIXES = ("f32", "f64")
TOLERANCE = {"f32": 2e-6, "f64": 1e-12}
EXACT = (
    "group_count",
    "exp_avg_initialized",
    "processed_data_counts",
    "update_data_counts",
    "update_batch_counts",
    "batch_count",
)


def names_of(file):
    return [str(name) for name in grfal_golden.load(file)["scenario_names"]]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("file", "name"), [(file, name) for file in FILES for name in names_of(file)])
def test_loss_sequence(file, name, suffix):
    arrays = grfal_golden.load(file)
    index = names_of(file).index(name)
    settings = loss_sequence.scenarios(arrays)[index]
    compared = {key.split("__", 1)[1] for key in arrays if key.startswith(suffix)}
    for sequence in range(len(arrays["yhat"])):
        _, found = loss_sequence.run(arrays, settings, sequence, suffix)
        assert compared <= set(found)
        for array in compared:
            wanted = arrays[f"{suffix}__{array}"][index, sequence]
            if array in EXACT:
                np.testing.assert_array_equal(found[array].double().numpy(), wanted, err_msg=array)
            else:
                grfal_golden.close(found[array], wanted, TOLERANCE[suffix])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_greedy_rule(suffix):
    arrays = grfal_golden.load("greedy.npz")
    dtype = grfal_golden.DTYPES[suffix]
    losses, references, counts = (
        torch.from_numpy(arrays[name]).to(dtype) for name in ("group_loss", "ref_loss", "group_counts")
    )
    weights = torch.stack(
        [
            greedy_weights(
                reference, count / count.sum(), alpha=float(alpha), minimum_variational_weight=float(rho)
            )
            for reference, count, alpha, rho in zip(
                references, counts, arrays["alpha"], arrays["min_var_weight"], strict=True
            )
        ]
    )
    grfal_golden.close(weights, arrays[f"{suffix}__weights"], TOLERANCE[suffix])
    grfal_golden.close((weights * losses).sum(dim=1), arrays[f"{suffix}__loss"], TOLERANCE[suffix])


class CgdNetwork(nn.Module):
    def __init__(self, arrays, head_scale, dtype):
        super().__init__()
        for name in ("layer1", "layer3", "layer4", "fc"):
            weight, bias = (torch.from_numpy(arrays[f"model__{name}.{part}"]) for part in ("weight", "bias"))
            layer = nn.Linear(*reversed(weight.shape))
            scale = head_scale if name == "fc" else 1
            layer.load_state_dict({"weight": weight * scale, "bias": bias * scale})
            self.add_module(name, layer)
        self.to(dtype)

    def forward(self, x):
        for layer in (self.layer1, self.layer3, self.layer4):
            x = torch.tanh(layer(x))
        return self.fc(x)


ETA = {"s001": 0.01, "s1": 1.0, "s1_at": 1.0, "s5": 5.0}


def group_gradients(network, losses, groups, counts):
    chosen = [
        parameter
        for name, parameter in network.named_parameters()
        if any(word in name for word in ("layer3", "layer4", "fc.weight", "fc.bias"))
    ]
    rows = []
    for group in range(len(counts)):
        loss = (losses * (groups == group)).sum() / counts[group].clamp(min=1)
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, chosen, retain_graph=True)]))
    return torch.stack(rows)


def cgd_rows(arrays, prefix, suffix):
    dtype = grfal_golden.DTYPES[suffix]
    network = CgdNetwork(arrays, 40 if prefix == "s5" else 1, dtype)
    rule = GroupRule(
        training_counts=tuple(float(n) for n in arrays["group_counts"]),
        weighting="cgd",
        generalization_adjustment=(2.0,),
        robust_step_size=ETA[prefix],
        limit_adv=True,
    ).official()
    state = RuleState.start(rule, dtype)
    labels, groups = (
        torch.from_numpy(arrays[name]).long() for name in ("y_s5" if prefix == "s5" else "y", "g")
    )
    for batch in range(len(labels)):
        logits, adversarial = (
            network(torch.from_numpy(arrays[name][batch]).to(dtype)) for name in ("x", "x_adv")
        )
        losses = F.cross_entropy(logits, labels[batch], reduction="none")
        robust = 6 * (logits.softmax(1) * (logits.log_softmax(1) - adversarial.log_softmax(1))).sum(dim=1)
        natural, own = unit_means([losses, robust], groups[batch], rule.units)
        gradients = group_gradients(network, losses, groups[batch], natural.counts)
        update = cgd_weights(rule, state.natural_weights, natural.means, gradients, natural.counts)
        result = step(rule, state, natural, own if prefix == "s1_at" else None, gradients=gradients)
        state = result.state
        yield {
            "yhat": logits,
            "returned_loss": result.loss,
            "adv_probs": state.natural_weights,
            "adv_trade_probs": state.adversarial_weights,
            "exponent": update.exponent,
            "group_loss": natural.means,
            "RTG_scaled": update.affinity,
        }


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("prefix", ETA)
def test_cgd(prefix, suffix):
    arrays = grfal_golden.load("cgd.npz")
    tolerance = 1e-12 if suffix == "f64" else 5e-5 if prefix == "s5" else 1e-5
    rows = list(cgd_rows(arrays, prefix, suffix))
    for name in rows[0]:
        found = torch.stack([row[name] for row in rows])
        grfal_golden.close(found, arrays[f"{prefix}__{suffix}__{name}"], tolerance)
    counts = tuple(float(n) for n in arrays["group_counts"])
    rule = GroupRule(counts, weighting="cgd", generalization_adjustment=(2.0,)).official()
    prior = constants(rule, grfal_golden.DTYPES[suffix], torch.device("cpu")).prior
    grfal_golden.close(prior[None], arrays[f"{prefix}__{suffix}__wts"], tolerance)


def test_an_entry_of_zero_gives_nothing_to_any_group():
    arrays = grfal_golden.load(FILES[0])
    settings = next(s for s in loss_sequence.scenarios(arrays) if s["name"] == "gdro_adj_one_zero")
    rule = loss_sequence.rule_of(settings, arrays["group_counts"])
    means = UnitMeans(torch.ones(rule.units), torch.ones(rule.units))
    assert not step(rule, RuleState.start(rule), means).shift.any()
