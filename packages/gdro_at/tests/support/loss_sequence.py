"""Run a scenario of the golden loss sequences: from logits to every recorded quantity, batch after batch."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gdro_at.statistics import Statistics
from gdro_at.units import UnitMeans, unit_means, weighted_sum
from gdro_at.weights import GroupRule, RuleState, RuleStep, step

DTYPES = {"f32": torch.float32, "f64": torch.float64}


def scenarios(arrays: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the settings of the scenarios, in the order of the arrays."""
    return json.loads(str(arrays["flags_json"]))


def rule_of(settings: dict[str, Any], counts: np.ndarray) -> GroupRule:
    """Return the official rule of a scenario."""
    vectors = {
        "pergroup": tuple(range(1, len(counts) + 1)),
        "onezero": (0.0, *([2.0] * (len(counts) - 1))),
    }
    adjustment = settings["adj"]
    weighting = "mean" if not settings["is_robust"] else "greedy" if settings["btl"] else "exponential"
    if settings["group_type"] == "CGD" and settings["is_training"] and settings["is_robust"]:
        weighting = "cgd"
    return GroupRule(
        training_counts=tuple(float(n) for n in counts),
        weighting=weighting,
        generalization_adjustment=vectors[adjustment] if isinstance(adjustment, str) else tuple(adjustment),
        robust_step_size=settings["step_size"],
        use_normalized_loss=settings["normalize_loss"],
        train_grad=settings["train_grad"],
        limit_nat=settings["limit_nat"],
        limit_adv=settings["limit_adv"],
        limit_eps=settings["limit_eps"],
        alpha=settings["alpha"],
        minimum_variational_weight=settings["min_var_weight"],
        gamma=settings["gamma"],
    ).official()


def per_sample(
    settings: dict[str, Any], logits: Tensor, adversarial: Tensor, labels: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Return the natural and the adversarial term of each sample."""
    robust = beta * (logits.softmax(1) * (logits.log_softmax(1) - adversarial.log_softmax(1))).sum(dim=1)
    if settings["hinge"] and not settings["trade"]:
        sign = 2 * labels - 1
        return (1 - sign * (logits[:, 1] - logits[:, 0])).clamp(min=0), robust
    natural = F.cross_entropy(logits, labels, reduction="none")
    if settings["trade"] and not settings["trades_new"]:
        natural = natural + robust
    return natural, robust


class Sequence:
    """The state of one sequence, moved batch by batch."""

    def __init__(self, settings: dict[str, Any], counts: np.ndarray, beta: float, dtype: torch.dtype) -> None:
        self.settings, self.beta = settings, beta
        self.rule = rule_of(settings, counts)
        self.state = RuleState.start(self.rule, dtype)
        self.statistics = Statistics.start(len(counts), dtype)

    def reset(self) -> None:
        """Do what the official code does when it has logged."""
        self.statistics = Statistics.start(self.rule.units, self.statistics.loss.dtype)
        self.state = self.state.reset()

    def batch(self, logits: Tensor, adversarial: Tensor, labels: Tensor, groups: Tensor) -> dict[str, Tensor]:
        """Return the recorded quantities of one batch."""
        logits, adversarial = (tensor.clone().requires_grad_() for tensor in (logits, adversarial))
        natural, robust = per_sample(self.settings, logits, adversarial, labels, self.beta)
        hits = (logits.argmax(dim=1) == labels).to(logits.dtype)
        means = unit_means([natural, robust, hits], groups, self.rule.units)
        own = self.settings["trade"] and self.settings["trades_new"]
        result = step(self.rule, self.state, means[0], means[1] if own else None)
        self.state = result.state
        used = UnitMeans(means[0].means + result.shift, means[0].counts)
        self.statistics = self.statistics.updated(used, means[2].means, result.natural_weights, result.actual)
        loss = self.loss(result, natural, robust, groups, means[0].counts)
        return {
            **self.recorded(result, means, used),
            **self.gradients(loss, logits, adversarial),
        }

    def loss(
        self, result: RuleStep, natural: Tensor, robust: Tensor, groups: Tensor, counts: Tensor
    ) -> Tensor:
        """Return the loss as a training method builds it, and hold its value to that of the rule."""
        if result.natural_weights is None:
            loss = natural.mean()
        else:
            loss = weighted_sum(natural, groups, result.natural_weights, counts)
        if result.adversarial_weights is not None:
            loss = loss + weighted_sum(robust, groups, result.adversarial_weights, counts)
        shift = 0 if result.natural_weights is None else (result.natural_weights * result.shift).sum()
        torch.testing.assert_close(loss.detach() + shift, result.loss)
        return loss

    @staticmethod
    def gradients(loss: Tensor, *logits: Tensor) -> dict[str, Tensor]:
        """Return the gradients of the loss by the logits, zeros where it does not depend on them."""
        found = torch.autograd.grad(loss, logits, allow_unused=True)
        names = ("grad_yhat", "grad_yhat_adv")
        return {
            name: torch.zeros_like(like) if gradient is None else gradient
            for name, gradient, like in zip(names, found, logits, strict=True)
        }

    def recorded(self, result: RuleStep, means: list[UnitMeans], used: UnitMeans) -> dict[str, Tensor]:
        """Return what the golden arrays hold, by their names."""
        state, statistics = self.state, self.statistics
        nothing = torch.full_like(used.means, float("nan"))
        return {
            "returned_loss": result.loss,
            "actual_loss": result.actual,
            "robust_term": result.robust_term,
            "group_loss_raw": means[0].means,
            "group_loss_used": used.means,
            "group_count": means[0].counts,
            "group_acc": means[2].means,
            "rob_group_loss": nothing if result.adversarial_weights is None else means[1].means,
            "weights": nothing if result.natural_weights is None else result.natural_weights,
            "adv_probs": state.natural_weights,
            "adv_trade_probs": state.adversarial_weights,
            "exp_avg_loss": state.average,
            "exp_avg_initialized": state.seen,
            "processed_data_counts": statistics.processed,
            "update_data_counts": statistics.updated_data,
            "update_batch_counts": statistics.updated_batches,
            "avg_group_loss": statistics.loss,
            "avg_group_acc": statistics.accuracy,
            "avg_per_sample_loss": statistics.average_loss,
            "avg_actual_loss": statistics.actual,
            "avg_acc": statistics.average_accuracy,
            "batch_count": statistics.batches,
        }


def run(
    arrays: dict[str, np.ndarray],
    settings: dict[str, Any],
    sequence: int,
    suffix: str,
    batches: int | None = None,
) -> tuple[Sequence, dict[str, Tensor]]:
    """Return the final state and, by name, the recorded quantities stacked over the batches."""
    dtype = DTYPES[suffix]
    yhat, yhat_adv = (torch.from_numpy(arrays[name][sequence]).to(dtype) for name in ("yhat", "yhat_adv"))
    labels, groups = (torch.from_numpy(arrays[name][sequence]).long() for name in ("y", "g"))
    running = Sequence(settings, arrays["group_counts"], float(arrays["beta"]), dtype)
    rows = []
    for batch in range(len(yhat) if batches is None else batches):
        rows.append(running.batch(yhat[batch], yhat_adv[batch], labels[batch], groups[batch]))
        if batch in arrays["reset_after"]:
            running.reset()
    return running, {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
