"""What decides the weights of groups: one frozen setting per rule, official or corrected, and their differences.

The corrected rule (``fair_baselines``, sections 1 to 3) is the default of every axis. ``GroupRule.official`` sets all
axes to what the published code does; any one axis can be changed alone.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

import torch
from torch import Tensor

from robust_core.errors import UserError

__all__ = ["OFFICIAL_AXES", "Constants", "GroupRule", "constants", "single_changes"]


@dataclass(frozen=True)
class GroupRule:
    """A rule for the natural weights q and the adversarial weights p of K units (groups or classes).

    Settings, named as the published flags:

    - ``training_counts``: training images ``n_k`` of each unit; their number is K.
    - ``weighting``: ``mean`` (not ``--robust``: plain mean of the natural loss), ``exponential`` (Group-DRO),
      ``greedy`` (``--btl``), ``cgd``.
    - ``generalization_adjustment``: C, one value or one per unit; ``C / sqrt(n_k)`` is added to the loss of unit k.
    - ``robust_step_size``: eta. ``use_normalized_loss``: losses divided by their sum in the exponent.
    - ``train_grad``: the running mean of the losses in the exponent ("WULG").
    - ``limit_nat``, ``limit_adv``, ``limit_eps``: bounds ``(1 -+ limit_eps) / K`` on q and on p.
    - ``alpha``, ``minimum_variational_weight``: of the greedy rule.
    - ``gamma``: rate of the exponential average of the losses, by which the greedy rule sorts.

    Axes on which the official code differs (corrected | official):

    - ``adjust``: ``copy`` | ``in_place``. On a copy, wherever an entry of C is positive | only if all entries are
      positive, and then in the loss and in the log as well.
    - ``updates``: ``once`` | ``published``: the weights are multiplied once per step | two times, with WULG three.
    - ``bound``: ``projection`` | ``clip``. Kullback-Leibler projection on the bounds | clip, before the last
      multiplication (of q) and the normalisation, so that weights in use leave the bounds.
    - ``sign``: ``plus`` | ``minus``: a unit with a large adversarial loss gains | loses weight in p.
    - ``adv_scale``: ``mean`` | ``four``, and ``sum``: factor 1 | 4 (K) of the adversarial term.
    - ``adv_weights``: ``own``, and ``uniform`` (p = 1/K), ``natural`` (p = q), which only an ablation uses.
    - ``running_mean``: ``epoch`` | ``log``. Per unit, of unnormalised losses, reset at epoch starts | used only once
      unit 0 was seen, reset whenever statistics are logged, normalised losses mixed with others. The caller resets.
    - ``absent``: ``untouched`` | ``moved``. An absent unit keeps its weight, exactly; the present ones share the rest
      (as in sleeping experts, Freund et al. 1997) | it is a unit with loss 0.
    - ``cgd_form``: ``corrected`` | ``published``: weights start at the prior and are normalised after the floor |
      start at 1/K and are not.

    Raises ``UserError`` for a setting out of its range.
    """

    training_counts: tuple[float, ...]
    weighting: Literal["mean", "exponential", "greedy", "cgd"] = "exponential"
    generalization_adjustment: tuple[float, ...] = (0.0,)
    robust_step_size: float = 0.01
    use_normalized_loss: bool = False
    train_grad: bool = False
    limit_nat: bool = False
    limit_adv: bool = False
    limit_eps: float = 0.2
    alpha: float = 0.2
    minimum_variational_weight: float = 0.0
    gamma: float = 0.1
    adjust: Literal["copy", "in_place"] = "copy"
    updates: Literal["once", "published"] = "once"
    bound: Literal["projection", "clip"] = "projection"
    sign: Literal["plus", "minus"] = "plus"
    adv_scale: Literal["mean", "sum", "four"] = "mean"
    adv_weights: Literal["own", "uniform", "natural"] = "own"
    running_mean: Literal["epoch", "log"] = "epoch"
    absent: Literal["untouched", "moved"] = "untouched"
    cgd_form: Literal["corrected", "published"] = "corrected"

    def __post_init__(self) -> None:
        _check_words(self)
        _check_numbers(self)
        _check_units(self)

    @property
    def units(self) -> int:
        """K."""
        return len(self.training_counts)

    @property
    def adjustments(self) -> tuple[float, ...]:
        """C of each unit."""
        given = self.generalization_adjustment
        return given * self.units if len(given) == 1 else given

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest weight that ``limit_nat`` and ``limit_adv`` allow."""
        return (1 - self.limit_eps) / self.units, (1 + self.limit_eps) / self.units

    @property
    def adversarial_factor(self) -> float:
        """Factor of the adversarial term: 1, K, or the published 4."""
        return {"mean": 1.0, "sum": float(self.units), "four": 4.0}[self.adv_scale]

    def movable(self, counts: Tensor) -> Tensor:
        """Return which units (bool ``(K,)``) a batch may move: its members, or all where absent units are moved."""
        return counts > 0 if self.absent == "untouched" else torch.ones_like(counts, dtype=torch.bool)

    def official(self) -> GroupRule:
        """Return the rule with the same settings that does, on every axis, what the official code does."""
        return replace(self, **OFFICIAL_AXES)


OFFICIAL_AXES: dict[str, Any] = {
    "adjust": "in_place",
    "updates": "published",
    "bound": "clip",
    "sign": "minus",
    "adv_scale": "four",
    "adv_weights": "own",
    "running_mean": "log",
    "absent": "moved",
    "cgd_form": "published",
}
"""The official value of every axis."""


def single_changes(rule: GroupRule) -> dict[str, GroupRule]:
    """Return, by name, the rules that differ from a corrected one in one thing (``fair_baselines``, section 2)."""
    return {
        "minus sign": replace(rule, sign="minus"),
        "published multiplications": replace(rule, updates="published"),
        "clip": replace(rule, bound="clip"),
        "sum": replace(rule, adv_scale="sum"),
        "factor 4": replace(rule, adv_scale="four"),
        "p uniform": replace(rule, adv_weights="uniform"),
        "p = q": replace(rule, adv_weights="natural"),
        "no bounds": replace(rule, limit_nat=False, limit_adv=False),
        "running mean of the log": replace(rule, running_mean="log"),
        "absent units moved": replace(rule, absent="moved"),
    }


class Constants(NamedTuple):
    """What a rule needs of the training split, each ``(K,)``.

    ``shift`` is added to the losses in the exponent; ``reference`` to the exponential averages by which the greedy
    rule sorts (and which the log calls adjusted); ``fractions`` are the units' shares of the training images;
    ``prior`` are CGD's v.
    """

    shift: Tensor
    reference: Tensor
    fractions: Tensor
    prior: Tensor


@functools.lru_cache(maxsize=16)
def constants(rule: GroupRule, dtype: torch.dtype, device: torch.device) -> Constants:
    """Return the constants of a rule; cached, so that no step waits for a copy to the device. Do not change them."""
    published = rule.adjust == "in_place"
    pairs = list(zip(rule.adjustments, rule.training_counts, strict=True))
    reference = [c / math.sqrt(n) if n > 0 and (published or c > 0) else 0.0 for c, n in pairs]
    shifted = not published or all(c > 0 for c in rule.adjustments)
    total = sum(rule.training_counts)

    def tensor(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return Constants(
        shift=tensor(reference if shifted else [0.0] * rule.units),
        reference=tensor(reference),
        fractions=tensor([n / total for n in rule.training_counts]),
        prior=torch.softmax(tensor(reference), dim=0),
    )


def _check_words(rule: GroupRule) -> None:
    hints = get_type_hints(GroupRule)
    for field in fields(rule):
        words = get_args(hints[field.name])
        value = getattr(rule, field.name)
        if isinstance(field.default, str) and value not in words:
            raise UserError(f"{field.name} is {value!r}; choose one of: {', '.join(words)}.")


def _check_numbers(rule: GroupRule) -> None:
    ranges = {
        "robust_step_size": (0.0, math.inf, "0 or more"),
        "limit_eps": (0.0, math.inf, "0 or more"),
        "gamma": (0.0, 1.0, "from 0 to 1"),
        "minimum_variational_weight": (0.0, 1.0, "from 0 to 1"),
    }
    for name, (low, high, words) in ranges.items():
        value = getattr(rule, name)
        if not (math.isfinite(value) and low <= value <= high):
            raise UserError(f"{name} is {value}; give a number {words}.")
    if not rule.alpha > 0:
        raise UserError(f"alpha is {rule.alpha}; give the share of the worst part, a number above 0.")


def _check_units(rule: GroupRule) -> None:
    counts, given = rule.training_counts, rule.generalization_adjustment
    if not all(math.isfinite(n) and n >= 0 for n in counts) or not sum(counts) > 0:
        raise UserError(
            f"training_counts are {counts}; give the number of training images of each group, not all 0."
        )
    if len(given) not in (1, rule.units):
        raise UserError(
            f"generalization_adjustment has {len(given)} values for {rule.units} groups; give one value, or one per "
            "group."
        )
    if not all(math.isfinite(c) for c in given):
        raise UserError(f"generalization_adjustment is {given}; give finite numbers.")
    for unit, (adjustment, count) in enumerate(zip(rule.adjustments, counts, strict=True)):
        if rule.adjust == "in_place" and adjustment > 0 and count == 0:
            raise UserError(
                f"Group {unit} has no training images, so its generalization_adjustment {adjustment} / sqrt(0) is "
                "infinite; leave the group out, set the adjustment to 0, or use --weights corrected."
            )
