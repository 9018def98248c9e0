"""Attacks against each other: first one step and whether all agree on it, then the clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.speed.clock import alternate, plan_rounds, seconds_of
from benchmarks.speed.rows import Row
from benchmarks.speed.setting import Setting, say

__all__ = ["Contender", "contest", "share_equal"]


@dataclass(frozen=True)
class Contender:
    """An attack as a function of the number of steps; ``first`` steps show its iterate after one."""

    name: str
    attack: Callable[[int], Tensor]
    first: int = 1
    note: str = ""


def share_equal(ours: Tensor, other: Tensor, images: Tensor) -> float:
    """Return the share of equal elements (to 1e-6), among the images that the other side changed.

    An attack that keeps its best iterate may keep the natural image; when it does so for more than a tenth of
    the images, nothing was compared and the share is 0.
    """
    changed = (other != images).flatten(1).any(dim=1)
    if changed.float().mean() < 0.9:
        return 0.0
    return float(((ours - other).abs() <= 1e-6)[changed].float().mean())


def contest(
    part: str,
    setting: Setting,
    ours: Mapping[str, Callable[[int], Tensor]],
    others: Sequence[Contender],
    *,
    targets: Mapping[str, float | None],
    seconds: float,
) -> list[Row]:
    """Return a row for each of our precisions against each other attack, all timed in turns."""
    sides = {f"ours, {name}": attack for name, attack in ours.items()}
    sides |= {other.name: other.attack for other in others}
    first_steps = dict.fromkeys(sides, 1) | {other.name: other.first for other in others}
    firsts: dict[str, Tensor] = {}
    estimates: dict[str, float] = {}
    for name, attack in sides.items():
        attack(1)  # the first call of all prepares kernels and memory
        one = partial(_kept, firsts, name, attack, first_steps[name])
        estimates[name] = seconds_of(one, setting.device) * setting.steps / first_steps[name]
    rounds = plan_rounds(sum(estimates.values()), seconds, least=setting.least_rounds)
    say(
        f"({part}) {rounds} rounds of about {sum(estimates.values()):.0f} s: "
        + ", ".join(f"{name} {value:.1f} s" for name, value in estimates.items())
    )
    results: dict[str, Tensor] = {}
    runs = {name: partial(_kept, results, name, attack, setting.steps) for name, attack in sides.items()}
    times = alternate(runs, rounds, setting.device)
    reached = {name: _loss(setting.network, result, setting.labels) for name, result in results.items()}
    rows = []
    for precision in ours:
        name = f"ours, {precision}"
        for other in others:
            rows.append(
                Row(
                    part=part,
                    ours=precision,
                    other=other.name,
                    our_times=times[name],
                    other_times=times[other.name],
                    target=targets.get(precision),
                    equal=share_equal(firsts[name], firsts[other.name], setting.images),
                    needs_equal=precision.startswith("float32"),
                    note=f"loss {reached[name]:.3f} / {reached[other.name]:.3f}"
                    + (f"; {other.note}" if other.note else ""),
                    details={"loss_reached": reached[name], "loss_reached_other": reached[other.name]},
                )
            )
    return rows


def _kept(kept: dict[str, Tensor], name: str, attack: Callable[[int], Tensor], steps: int) -> None:
    kept[name] = attack(steps)


@torch.no_grad()
def _loss(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float(nn.functional.cross_entropy(network(images), labels))
