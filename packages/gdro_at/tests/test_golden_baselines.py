"""WAT, CFA, DAFA and FAT as published: rules, budgets, attacks, training steps with gradients, validation passes."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from grfal_golden import (
    DTYPES,
    close,
    filled,
    images_of,
    load,
    normal_noise,
    torchvision_resnet18,
)
from torch import nn

from gdro_at.baselines.base import passes_of
from gdro_at.baselines.cfa import (
    OFFICIAL_BEGIN,
    OFFICIAL_DECAY,
    OFFICIAL_FACTOR,
    OFFICIAL_THRESHOLD,
    average_weights,
    cfa_loss,
    kept_share,
    official_training_accuracies,
    unit_budgets,
)
from gdro_at.baselines.dafa import class_weights, dafa_terms, mean_probabilities
from gdro_at.baselines.fat import (
    Multipliers,
    UnitErrors,
    fat_loss,
    official_radius_factors,
    official_shares,
    official_update,
    step_within,
    unit_errors,
)
from gdro_at.baselines.wat import (
    expert_weights,
    official_validation_accuracies,
    official_validation_costs,
    official_wat_loss,
)
from gdro_at.units import unit_totals
from robust_core.attacks.engine import ascend
from robust_core.attacks.objectives import cross_entropy, kl_to
from robust_core.losses import kl_divergence
from robust_core.models import FrozenView
from robust_core.training.method import StepContext

pytestmark = pytest.mark.golden

PRECISIONS = pytest.mark.parametrize("suffix", ["f32", "f64"])
# ResNet-18 in float64 takes seconds each time
STEPS = pytest.mark.parametrize("suffix", ["f32", pytest.param("f64", marks=pytest.mark.slow)])
RULES = {"f32": 1e-5, "f64": 1e-12}
LOGITS = {"f32": 1e-4, "f64": 1e-10}
LOSSES = {"f32": 1e-3, "f64": 1e-10}
GRADIENTS = {"f32": 2e-2, "f64": 1e-9}


@functools.cache
def network(file, suffix):
    return torchvision_resnet18(load(file), suffix)


def tensor(file, name, suffix):
    return torch.from_numpy(np.asarray(load(file)[name])).to(DTYPES[suffix])


def whole(file, name):
    return torch.from_numpy(load(file)[name].astype(np.int64))


class Case:
    """The network, the inputs and the stored adversarial images of one file's training step."""

    def __init__(self, file, suffix):
        arrays = load(file)
        self.file, self.suffix, self.arrays = file, suffix, arrays
        self.model = copy.deepcopy(network(file, suffix))
        self.images = images_of(arrays, suffix)
        self.labels = whole(file, "y")
        self.units = whole(file, "g") if "g" in arrays else self.labels
        self.start = self.images + float(arrays["init_scale"]) * normal_noise(arrays["noise_normal"], suffix)

    def setting(self, name):
        return float(self.arrays[name])

    def expected(self, name):
        return self.arrays[f"{self.suffix}__{name}"]

    def attack(self, eps, step_size):
        """Return the adversarial images: ours in float64; in float32, where many steps are chaotic, the stored."""
        stored = tensor(self.file, "delta", self.suffix)
        if self.suffix == "f32":
            return self.images + stored
        view = FrozenView(self.model)
        objective = kl_to(view(self.images))
        values = []

        def visit(points):
            with torch.no_grad():
                values.append(objective(view(points), self.labels).sum())

        given = "attack_losses" if f"{self.suffix}__attack_losses" in self.arrays else None
        found = ascend(
            view,
            self.images,
            self.labels,
            start=self.start,
            eps=eps,
            step_size=step_size,
            steps=int(self.arrays["iters"]),
            objective=objective,
            visit=visit if given else None,
        )
        assert (found - self.images - stored).abs().max() <= 2e-9
        if given:
            close(torch.stack(values[:-1]), self.expected(given), 1e-10)
        return found

    def passes(self, eps, step_size, *, twice=False):
        adversarial = self.attack(eps, step_size)
        return passes_of(self.model.train(), self.images, adversarial, context(), twice=twice)

    def check_gradients(self, loss):
        close(loss, self.expected("loss"), LOSSES[self.suffix])
        loss.backward()
        parameters = dict(self.model.named_parameters())
        norms = torch.stack([parameter.grad.norm() for parameter in parameters.values()])
        close(norms, self.expected("grad_norms"), GRADIENTS[self.suffix])
        for name in ("fc.weight", "fc.bias", "bn1.weight"):
            expected = self.expected("grad_" + name.replace(".", "_"))
            close(parameters[name].grad, expected, GRADIENTS[self.suffix])


def context():
    return StepContext(
        seed=1, epoch=0, step=0, phase_step=0, phase_steps=1, view=None, rows=(0, 0), global_size=0
    )


@STEPS
def test_wat_step(suffix):
    case = Case("wat.npz", suffix)
    passes = case.passes(case.setting("eps"), case.setting("step"))
    natural, robust = passes.natural_terms(case.labels), passes.robust_terms()
    close(passes.natural, case.expected("logits_nat"), LOGITS[suffix])
    close(passes.adversarial, case.expected("logits_adv"), LOGITS[suffix])
    close(natural, case.expected("iter_nat_loss"), LOSSES[suffix])
    close(robust, case.expected("iter_bndy_loss"), 2e-2 if suffix == "f32" else 1e-10)
    beta = case.setting("beta")
    ours = natural.mean() + beta * robust.mean()
    close(ours, case.expected("trades_loss"), LOSSES[suffix])
    case.check_gradients(
        official_wat_loss(
            natural,
            robust,
            case.units,
            natural_weights=tensor("wat.npz", "nat_class_weights", suffix),
            boundary_weights=tensor("wat.npz", "bndy_class_weights", suffix),
            beta=beta,
            size=len(case.images),
        )
    )


@pytest.mark.parametrize("suffix", ["f32", pytest.param("f64", marks=pytest.mark.slow)])
def test_wat_validation(suffix):
    case = Case("wat.npz", suffix)
    images = images_of(case.arrays, suffix, "valid_x_base")
    units = whole("wat.npz", "valid_g")
    labels = units // 2
    count = len(case.expected("class_weights")[0]) - 1
    shifts = tensor("wat.npz", "valid_fc_bias_shift", suffix)
    costs = torch.zeros(int(case.arrays["n_epochs"]), count + 1, dtype=DTYPES[suffix])
    for epoch, noise in enumerate(case.arrays["valid_noise_normal"]):
        model = copy.deepcopy(network("wat.npz", suffix)).eval()
        model.requires_grad_(False).fc.bias[0] += shifts[: epoch + 1].sum()
        view = FrozenView(model)
        natural = view(images)
        found = ascend(
            view,
            images,
            labels,
            start=images + case.setting("init_scale") * normal_noise(noise, suffix),
            eps=case.setting("eps"),
            step_size=case.setting("step"),
            steps=int(case.arrays["iters"]),
            objective=kl_to(natural),
        )
        attacked = view(found)
        scale = {"batches": 2, "batch_size": int(case.arrays["valid_batch_size"])}
        terms = F.cross_entropy(natural, labels, reduction="none"), kl_divergence(natural, attacked)
        nat, bndy = (official_validation_costs(term, units, count, **scale) for term in terms)
        costs[epoch] = nat + case.setting("beta") * bndy
        # several float32 steps are not comparable: up to 7 % of the pixels end elsewhere
        tolerance = 5e-2 if suffix == "f32" else 1e-10
        close(nat, case.expected("valid_nat_cost")[epoch], LOSSES[suffix])
        close(bndy, case.expected("valid_bndy_cost")[epoch], tolerance)
        close(costs[epoch], case.expected("valid_cost")[epoch], tolerance)
        stored = torch.from_numpy(case.expected("valid_cost")).to(DTYPES[suffix])
        weights = expert_weights(stored[: epoch + 1].sum(dim=0), case.setting("eta"))
        close(weights, case.expected("class_weights")[epoch], RULES[suffix])
        close(weights.sum(), count, 1e-6)
        close(expert_weights(costs.sum(dim=0), case.setting("eta")), weights, tolerance)
        shown = official_validation_accuracies(attacked, labels, units, count)
        if suffix == "f64":
            close(shown, case.expected("valid_acc")[epoch], 1e-6)
    close(costs[3:], case.expected("valid_cost")[3:], 0)
    for name in ("valid_nat_cost", "valid_bndy_cost"):
        assert not case.expected(name)[3:].any()


@STEPS
def test_cfa_step(suffix):
    case = Case("cfa.npz", suffix)
    eps = tensor("cfa.npz", "class_eps", suffix)[case.units]
    passes = case.passes(eps, case.setting("step"), twice=True)
    close(passes.natural, case.expected("logits_nat"), LOGITS[suffix])
    close(passes.adversarial, case.expected("robust_out"), LOGITS[suffix])
    shares = tensor("cfa.npz", "class_beta", suffix)[case.units]
    size = len(case.images)
    case.check_gradients(cfa_loss(*passes, case.labels, shares, factor=OFFICIAL_FACTOR, size=size))


@PRECISIONS
def test_cfa_budgets(suffix):
    arrays = load("cfa.npz")
    groups = whole("cfa.npz", "log_g")
    count = arrays[f"{suffix}__log_class_eps"].shape[1]
    eps, beta = float(arrays["log_epsilon"]), float(arrays["log_beta"])
    counters = torch.zeros(3, count, dtype=torch.float64)
    half = torch.full((count,), 0.5, dtype=DTYPES[suffix])
    budgets = unit_budgets(half, eps=eps, beta=beta)
    for epoch in range(len(groups) + 1):
        close(budgets.eps, arrays[f"{suffix}__log_class_eps"][epoch], RULES[suffix])
        close(budgets.robust_shares, arrays[f"{suffix}__log_class_beta"][epoch], RULES[suffix])
        if epoch == len(groups):
            break
        units = groups[epoch].reshape(-1)
        right = [
            (tensor("cfa.npz", name, suffix)[epoch].flatten(0, 1).argmax(dim=1) == units // 2).double()
            for name in ("log_robust_out", "log_clean_out")
        ]
        hits, seen = unit_totals(right, units, count)
        counters = counters + torch.cat([hits, seen[None]])
        robust, clean = (official_training_accuracies(row, counters[2]) for row in counters[:2])
        result = torch.cat([torch.stack([clean.mean(), robust.mean()]), clean, robust])
        close(result, arrays[f"{suffix}__log_result"][epoch], RULES[suffix])
        if epoch >= OFFICIAL_BEGIN:
            budgets = unit_budgets(robust.to(DTYPES[suffix]), eps=eps, beta=beta)


class Averaged(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)


@PRECISIONS
def test_cfa_weight_averaging(suffix):
    arrays = load("cfa.npz")
    model = filled(Averaged(), {}, suffix).requires_grad_(False)
    average = copy.deepcopy(model)
    first = True
    for epoch, (scale, bias, mean) in enumerate(tensor("cfa.npz", "fawa_perturb", suffix)):
        model.conv1.weight *= 1 + 0.1 * scale
        model.fc.bias += bias
        model.bn1.running_mean += mean
        model.bn1.num_batches_tracked += 7
        keep = kept_share(
            float(arrays["fawa_val_group_acc"][epoch].min()),
            first=first,
            threshold=OFFICIAL_THRESHOLD,
            decay=OFFICIAL_DECAY,
        )
        first = first and keep == 1.0
        average_weights(average, model, keep, official=True)
        close(average.conv1.weight, arrays[f"{suffix}__fawa_conv1"][epoch], RULES[suffix])
        state = torch.cat([average.fc.bias, average.bn1.running_mean])
        close(state, arrays[f"{suffix}__fawa_fcbias_runmean"][epoch], RULES[suffix])
        assert int(average.bn1.num_batches_tracked) == arrays[f"{suffix}__fawa_nbt"][epoch]


@STEPS
def test_dafa_step(suffix):
    case = Case("dafa.npz", suffix)
    weights = tensor("dafa.npz", "class_weights", suffix)[case.labels]
    adversarial = case.attack(weights * case.setting("eps"), weights * case.setting("step"))
    case.model.train()
    attacked = case.model(adversarial)
    natural = case.model(case.images)
    close(torch.softmax(attacked, dim=1), case.expected("memory_probs"), LOGITS[suffix])
    terms = dafa_terms(natural, attacked, case.labels, weights, size=len(case.images))
    close(terms.natural, case.expected("loss_natural"), LOSSES[suffix])
    close(terms.robust, case.expected("loss_robust"), 2e-2 if suffix == "f32" else 1e-10)
    case.check_gradients(terms.natural + case.setting("beta") * terms.robust)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("lam", [1.0, 1.5])
def test_dafa_weights(classes, lam):
    labels = whole("dafa.npz", f"k{classes}_labels")
    probabilities = tensor("dafa.npz", f"k{classes}_probs", "f64")
    sums, counts = unit_totals(list(probabilities.unbind(dim=1)), labels, classes)
    weights = class_weights(mean_probabilities(sums.T, counts), lam)
    close(weights, load("dafa.npz")[f"k{classes}_weights_lambda{lam}"], 1e-12)


def unit_weights(case, name):
    return tensor("fat.npz", name, case.suffix)[case.units]


def test_fat_attack_leaves_the_ball():
    arrays = load("fat.npz")
    assert np.abs(arrays["delta"]).max() > float(arrays["eps"])


@STEPS
def test_fat_step(suffix):
    case = Case("fat.npz", suffix)
    factors = official_radius_factors(unit_weights(case, "diff2"))
    steps = step_within(case.setting("step"), case.setting("eps"), factors)
    passes = case.passes(1.0, steps, twice=True)
    close(passes.natural, case.expected("logits_nat"), LOGITS[suffix])
    close(passes.adversarial, case.expected("logits_adv"), LOGITS[suffix])
    natural, boundary = unit_weights(case, "diff0"), unit_weights(case, "diff1")
    close(natural, case.expected("weight0"), RULES[suffix])
    close(boundary, case.expected("weight1"), RULES[suffix])
    close(factors, case.expected("weight2"), RULES[suffix])
    total = (natural + boundary).sum()
    case.check_gradients(fat_loss(*passes, case.labels, natural, boundary, beta=1.0, total=total))


@PRECISIONS
@pytest.mark.parametrize("name", ["sched", "sched2"])
def test_fat_multipliers(name, suffix):
    arrays = load("fat.npz")
    count = arrays[f"{suffix}__{name}_diff0"].shape[1]
    multipliers = Multipliers(*torch.zeros(3, count, dtype=DTYPES[suffix]))
    natural, boundary = (
        tensor("fat.npz", f"sched_class_{kind}_error", suffix)[:, :count] for kind in ("clean", "bndy")
    )
    for epoch, rate in enumerate(arrays[f"{name}_rate"]):
        totals = [float(arrays[f"sched_total_{kind}_error"][epoch]) for kind in ("clean", "bndy")]
        errors = UnitErrors(natural[epoch], boundary[epoch], *totals)
        multipliers = official_update(multipliers, errors, rate=float(rate))
        close(torch.cat(multipliers), arrays[f"{suffix}__{name}_lambda"][epoch], RULES[suffix])
        close(official_shares(multipliers.natural), arrays[f"{suffix}__{name}_diff0"][epoch], RULES[suffix])
        close(official_shares(multipliers.boundary), arrays[f"{suffix}__{name}_diff1"][epoch], RULES[suffix])
        close(multipliers.margin, arrays[f"{suffix}__{name}_diff2"][epoch], RULES[suffix])


@PRECISIONS
def test_fat_shares(suffix):
    arrays = load("fat.npz")
    for index in (0, 1):
        given = tensor("fat.npz", f"cs_lam{index}", suffix)
        found = torch.stack([official_shares(row) for row in given])
        close(found, arrays[f"{suffix}__cs_diff{index}"], RULES[suffix])
    close(tensor("fat.npz", "cs_lam2", suffix), arrays[f"{suffix}__cs_diff2"], RULES[suffix])


@STEPS
def test_fat_validation(suffix):
    arrays = load("fat.npz")
    view = FrozenView(network("fat.npz", suffix))
    images = images_of(arrays, suffix, "valid_x_base")
    units = whole("fat.npz", "valid_g")
    labels = units // 2
    eps = float(arrays["valid_eps"])
    noise = torch.from_numpy(arrays["valid_noise_uniform"].astype(np.float64) / 127 * eps)
    start = (images.double() + noise).clamp(0, 1).float().to(DTYPES[suffix])
    found = ascend(
        view,
        images,
        labels,
        start=start,
        eps=eps,
        step_size=eps / 4,
        steps=int(arrays["valid_iters"]),
        objective=cross_entropy,
    )
    with torch.no_grad():
        errors = unit_errors(
            view(images), view(found), labels, units, len(arrays[f"{suffix}__valid_class_clean_error"])
        )
    close(errors.natural, arrays[f"{suffix}__valid_class_clean_error"], 1e-6)
    totals = np.array([float(errors.total_natural), float(errors.total_boundary)])
    # in float32, where several steps are not comparable, one image of a group may end elsewhere
    apart = 1e-6 if suffix == "f64" else 1 / int(units.bincount().min()) + 1e-6
    boundary = arrays[f"{suffix}__valid_class_bndy_error"]
    assert np.abs(errors.boundary.numpy() - boundary).max() <= apart
    assert np.abs(totals - arrays[f"{suffix}__valid_total"]).max() <= apart
