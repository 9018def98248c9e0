"""(g) A training step of ANCRA-TRADES: its passes, counted, and what it takes beside their own time."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ancra.attacks import AllLogits, combined_cross_entropy, targeted_pgd, untargeted_pgd
from ancra.attention import Outputs, with_auxiliary
from ancra.losses import exclusion, natural_and_robust
from ancra.methods import Ancra
from ancra.negatives import Negatives
from ancra.networks import build_network
from benchmarks.speed.clock import Run, alternate, plan_rounds, seconds_of
from benchmarks.speed.contest import share_equal
from benchmarks.speed.negatives import published_pick
from benchmarks.speed.rows import Row
from benchmarks.speed.setting import EPS, Setting, say
from robust_core.attacks.engine import gradient_of, natural_layout
from robust_core.data import Batch
from robust_core.losses import cross_entropy
from robust_core.models import FrozenView, Network
from robust_core.randomness import generator_for
from robust_core.training import StepContext

__all__ = ["NETWORK", "OurSide", "Side", "agreement", "compare", "counted_passes", "published_step"]

NETWORK = "resnet18-w16"
STEP_SIZE, NOISE, CR, BETA, ZETA = 0.007, 0.001, 2.0, 6.0, 3.0
LEAST_SHARE = 0.9
"""At least so much of a step is its passes."""


@dataclass
class Side:
    """A network in training and the batch that each of its steps is given."""

    model: Network
    images: Tensor
    labels: Tensor
    steps: int
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4)

    def outputs(self, images: Tensor, labels: Tensor | None = None) -> Outputs:
        """Return what the live network says of the images."""
        found: Outputs = self.model(images, attention_labels=labels, auxiliary=True)
        return found

    def descend(self, loss: Tensor) -> None:
        """Take the optimizer's step."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()


def published_attack(
    side: Side, images: Tensor, labels: Tensor, start: Tensor, steps: int, *, sign: float
) -> Tensor:
    """Return the published attack's images, on the live network: away from the labels or (-1) towards them."""
    side.model.eval()
    found = start
    for _ in range(steps):
        found = found.detach().requires_grad_()
        loss = with_auxiliary(lambda logits: cross_entropy(logits, labels), side.outputs(found), cr=CR)
        (gradient,) = torch.autograd.grad(loss, found)
        moved = found.detach() + sign * STEP_SIZE * gradient.sign()
        found = torch.min(torch.max(moved, images - EPS), images + EPS).clamp(0.0, 1.0)
    return found.detach()


def published_step(side: Side, generator: torch.Generator) -> None:
    """Take a step as published: attacks on the live network, negatives by loops, three passes only to log."""
    images, labels = side.images, side.labels

    def started(points: Tensor) -> Tensor:
        return points + NOISE * torch.randn(points.shape, generator=generator).to(points.device)

    adversarial = published_attack(side, images, labels, started(images), side.steps, sign=1.0)
    chosen = torch.tensor(published_pick("random", labels, None, generator), device=images.device)
    others = images[chosen]
    negatives = published_attack(side, others, labels, started(others), side.steps, sign=-1.0)
    side.model.train()
    outputs = side.outputs(images, labels)
    attacked = side.outputs(adversarial, labels)
    apart = side.outputs(negatives, labels[chosen])
    natural, robust = natural_and_robust(outputs, attacked, labels, cr=CR)
    every = Negatives(chosen[:, None], torch.ones_like(chosen[:, None], dtype=torch.bool))
    loss = natural + BETA * robust + ZETA * exclusion(outputs, apart, every, alpha=1.0, cr=CR)
    side.model.eval()
    with torch.no_grad():
        logged = [side.outputs(points).logits for points in (images, adversarial, negatives)]
        for other in logged[1:]:
            (logged[0] - other).norm().item()
    side.descend(loss)


class OurSide(Side):
    """Ours: the method as it trains, on its frozen view."""

    def __init__(
        self, model: Network, images: Tensor, labels: Tensor, steps: int, num_classes: int, dtype: torch.dtype
    ) -> None:
        super().__init__(model.to(memory_format=torch.channels_last), images, labels, steps)
        self.view = FrozenView(model, dtype=dtype)
        self.method = Ancra("ANCRA-TRADES", "trades", num_classes, step_size=STEP_SIZE, steps=steps)
        count = len(images)
        self.batch = Batch(images, labels, torch.arange(count, device=images.device), global_size=count)
        self.context = StepContext(
            seed=0,
            epoch=0,
            step=0,
            phase_step=0,
            phase_steps=1,
            view=self.view,
            rows=(0, count),
            global_size=count,
        )

    def step(self) -> None:
        """Take a step as the training loop does."""
        self.view.refresh()
        self.model.train()
        self.descend(self.method.loss(self.model, self.batch, self.context).loss)

    def attack_passes(self) -> None:
        """Make the passes of both attacks, and nothing else."""
        network, objective = AllLogits(self.view), combined_cross_entropy(CR)
        images = natural_layout(network, self.images)
        for _ in range(2 * self.steps):
            gradient_of(network, images, self.labels, objective)

    def training_passes(self) -> None:
        """Make three passes in training mode, and nothing else."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(3):
            outputs = self.outputs(self.images, self.labels)
            torch.autograd.backward(
                with_auxiliary(lambda logits: cross_entropy(logits, self.labels), outputs, cr=CR)
            )


@contextmanager
def counted_passes(batch: int, *networks: nn.Module) -> Iterator[dict[str, float]]:
    """Count the networks' passes per image of the batch, by mode and direction: "training backward" and so on."""
    seen: dict[str, float] = defaultdict(float)

    def count(module: nn.Module, _: Any, found: Tensor | Outputs) -> None:
        mode = "training" if module.training else "evaluation"
        logits = found.logits if isinstance(found, Outputs) else found
        share = len(logits) / batch

        def backward(_: Tensor) -> None:
            seen[f"{mode} backward"] += share

        seen[f"{mode} forward"] += share
        if logits.requires_grad:
            logits.register_hook(backward)

    handles = [network.register_forward_hook(count) for network in networks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _network(setting: Setting, name: str) -> Network:
    """Return the network with weights of a fixed seed and norm statistics of the drawn images."""
    network = build_network(name, setting.dataset.info.num_classes, seed=0).to(setting.device).train()
    with torch.no_grad():
        for first in range(0, 512, 128):
            network(setting.dataset.pixels(slice(first, first + 128)))
    return network


def agreement(ours: OurSide, published: Side) -> float:
    """Return the share of equal elements after one step of either attack, the smaller one."""
    images, labels = ours.images, ours.labels
    noise = torch.randn(images.shape, generator=generator_for(0, "speed-start")).to(images.device)
    start = images + NOISE * noise
    shares = []
    for attack, sign in ((untargeted_pgd, 1.0), (targeted_pgd, -1.0)):
        mine = attack(ours.view, images, labels, start=start, eps=EPS, step_size=STEP_SIZE, steps=1, cr=CR)
        theirs = published_attack(published, images, labels, start, 1, sign=sign)
        shares.append(share_equal(mine, theirs, images))
    return min(shares)


def _rows(setting: Setting, network: str, name: str, dtype: torch.dtype, seconds: float) -> list[Row]:
    images, labels, num_classes = setting.images, setting.labels, setting.dataset.info.num_classes
    published = Side(_network(setting, network), images, labels, setting.steps)
    ours = OurSide(_network(setting, network), images, labels, setting.steps, num_classes, dtype)
    equal = agreement(ours, published)
    runs: dict[str, Run] = {
        "step": ours.step,
        "attack": ours.attack_passes,
        "training": ours.training_passes,
        "published": partial(published_step, published, generator_for(0, "speed-step")),
    }
    counted: dict[str, dict[str, float]] = {}
    for side, run in runs.items():
        with counted_passes(len(images), ours.model, ours.view.network, published.model) as seen:
            run()
        counted[side] = dict(seen)
        say(f"(g) {side}: {', '.join(f'{number:g} {kind}' for kind, number in sorted(seen.items()))}")
    whole = sum(seconds_of(run, setting.device) for run in runs.values())
    rounds = plan_rounds(whole, seconds, least=setting.least_rounds)
    say(f"(g) {rounds} rounds of about {whole:.1f} s with {network}")
    times = alternate(runs, rounds, setting.device)
    passes = [a + b for a, b in zip(times["attack"], times["training"], strict=True)]
    attack, training = (statistics.median(times[side]) for side in ("attack", "training"))
    attacks, trainings = (counted["step"][f"{mode} backward"] for mode in ("evaluation", "training"))
    share = statistics.median(a / b for a, b in zip(times["step"], passes, strict=True))
    details = {
        "network": network,
        "counted": counted,
        "attack": times["attack"],
        "training": times["training"],
    }
    return [
        Row(
            part="g",
            ours=name,
            our_times=times["step"],
            needs_equal=name.startswith("float32"),
            other="its passes alone",
            other_times=passes,
            target=LEAST_SHARE,
            equal=float(counted["step"] == counted["attack"] | counted["training"]),
            note=f"{network}: {attacks:g} attack passes of {1e3 * attack / attacks:.0f} ms and {trainings:g} "
            f"training passes of {1e3 * training / trainings:.0f} ms, forward and backward; step / passes {share:.2f}",
            details=details,
        ),
        Row(
            part="g",
            ours=name,
            our_times=times["step"],
            needs_equal=name.startswith("float32"),
            other="a step as published",
            other_times=times["published"],
            target=None,
            equal=equal,
            note=f"passes per image: ours {_in_short(counted['step'])}, published {_in_short(counted['published'])}",
        ),
    ]


def _in_short(counted: dict[str, float]) -> str:
    forward, backward = (
        sum(number for kind, number in counted.items() if kind.endswith(direction))
        for direction in ("forward", "backward")
    )
    return f"{forward:g} forward and {backward:g} backward"


def compare(setting: Setting, network: str = NETWORK) -> list[Row]:
    """Return two rows per precision: the step against its passes, and against a step as published."""
    precisions = {name: view.dtype for name, view in setting.views.items() if "compiled" not in name}
    seconds = 0.1 * setting.seconds / len(precisions)
    return [
        row for name, dtype in precisions.items() for row in _rows(setting, network, name, dtype, seconds)
    ]
