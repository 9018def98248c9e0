"""What a rule remembers from step to step; tensors only, so that it goes into a checkpoint as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from gdro_at.weights.rule import GroupRule, constants
from robust_core.errors import UserError

__all__ = ["RuleState"]


@dataclass(frozen=True)
class RuleState:
    """Weights and running losses of K units, each ``(K,)``.

    ``natural_weights`` q; ``adversarial_weights`` p; ``average``: exponential average E of the group losses, with
    ``seen`` (bool); ``running_mean`` M of the adjusted losses over ``running_count`` samples since the last reset.
    """

    natural_weights: Tensor
    adversarial_weights: Tensor
    average: Tensor
    seen: Tensor
    running_mean: Tensor
    running_count: Tensor

    @staticmethod
    def start(
        rule: GroupRule, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> RuleState:
        """Return the state before the first step: q = p = 1/K (corrected CGD: q = v), nothing seen."""
        place = torch.device(device)
        uniform = torch.full((rule.units,), 1 / rule.units, dtype=dtype, device=place)
        zero = torch.zeros_like(uniform)
        prior = rule.weighting == "cgd" and rule.cgd_form == "corrected"
        return RuleState(
            natural_weights=constants(rule, dtype, place).prior.clone() if prior else uniform,
            adversarial_weights=uniform.clone(),
            average=zero,
            seen=torch.zeros_like(uniform, dtype=torch.bool),
            running_mean=zero.clone(),
            running_count=zero.clone(),
        )

    def reset(self) -> RuleState:
        """Forget the running mean, and nothing else.

        Due at every epoch start (``running_mean="epoch"``), or, as published, whenever statistics are reset.
        """
        zero = torch.zeros_like(self.running_mean)
        return replace(self, running_mean=zero, running_count=zero.clone())

    def to_dict(self) -> dict[str, Tensor]:
        """Return the tensors by field name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def from_dict(tensors: Mapping[str, Tensor], units: int, device: torch.device | str = "cpu") -> RuleState:
        """Return the state that ``to_dict`` gave, on a device; refuse one that is not of ``units`` units."""
        names = [field.name for field in fields(RuleState)]
        if sorted(tensors) != sorted(names):
            raise UserError(
                f"The saved group weights hold {', '.join(sorted(tensors)) or 'nothing'}, expected "
                f"{', '.join(sorted(names))}; resume from a checkpoint that this version wrote."
            )
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != (units,):
                raise UserError(
                    f"The saved group weights hold {tuple(tensor.shape)} values of {name}, but the data have {units} "
                    "groups; resume with the data that the run began with."
                )
        return RuleState(**{name: tensors[name].to(device) for name in names})
