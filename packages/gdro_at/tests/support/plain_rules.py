"""The corrected rules of ``fair_baselines`` in plain Python, to hold the tensor code to."""

from __future__ import annotations

import math
from typing import Any


def projected(weights: list[float], lower: float, upper: float, total: float) -> list[float]:
    """Return ``clip(s w, lower, upper)`` with the sum ``total``, s by bisection."""
    low, high = -100.0, 100.0
    for _ in range(80):
        middle = (low + high) / 2
        values = [min(max(math.exp(middle) * w, lower), upper) for w in weights]
        low, high = (middle, high) if sum(values) < total else (low, middle)
    return values


def moved(
    weights: list[float], exponents: list[float], present: list[bool], bounds: tuple[float, float] | None
) -> list[float]:
    """Return the weights after one multiplication; absent units keep theirs, the present ones share the rest."""
    units = [k for k, there in enumerate(present) if there]
    total = 1 - sum(w for w, there in zip(weights, present, strict=True) if not there)
    raised = [weights[k] * math.exp(exponents[k]) for k in units]
    plain = [w / sum(raised) * total for w in raised]
    shared = plain if bounds is None else projected(raised, *bounds, total)
    result = list(weights)
    for k, weight in zip(units, shared, strict=True):
        result[k] = weight
    return result


class Corrected:
    """GDRO-AT corrected (section 2), with WULG and bounds as asked; Group-DRO (section 1) without them."""

    def __init__(self, counts: list[float], adjustment: list[float], eta: float, **options: Any) -> None:
        self.counts, self.adjustment, self.eta, self.options = counts, adjustment, eta, options
        self.units = len(counts)
        self.q = [1 / self.units] * self.units
        self.p = list(self.q)
        self.mean = [0.0] * self.units
        self.samples = [0] * self.units

    def step(self, natural: list[float], adversarial: list[float], members: list[int]) -> float:
        """Move the weights and return the loss (``--adv-scale mean``)."""
        present = [count > 0 for count in members]
        adjusted = [
            loss + (c / math.sqrt(n) if c > 0 else 0.0)
            for loss, c, n in zip(natural, self.adjustment, self.counts, strict=True)
        ]
        for k, count in enumerate(members):
            if count:
                total = self.samples[k] + count
                self.mean[k] = (self.samples[k] * self.mean[k] + count * adjusted[k]) / total
                self.samples[k] = total
        exponents = list(self.mean) if self.options.get("train_grad") else adjusted
        if self.options.get("use_normalized_loss"):
            whole = sum(e for e, there in zip(exponents, present, strict=True) if there)
            exponents = [e / whole if whole else 0.0 for e in exponents]
        kappa = self.options.get("limit_eps", 0.2)
        bounds = (max(0.0, (1 - kappa) / self.units), (1 + kappa) / self.units)
        limit_nat, limit_adv = (self.options.get(name, False) for name in ("limit_nat", "limit_adv"))
        self.q = moved(self.q, [self.eta * e for e in exponents], present, bounds if limit_nat else None)
        self.p = moved(self.p, [self.eta * r for r in adversarial], present, bounds if limit_adv else None)
        weighted = zip(self.q, natural, self.p, adversarial, strict=True)
        return sum(q * loss + p * gap for q, loss, p, gap in weighted)
