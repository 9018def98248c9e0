"""Attacks that know reverse attention, and the suite that they make with those that need not know.

The weights of the last blocks' features are a classifier row chosen by an argmax, which no gradient sees. So the
attacks here climb the auxiliary logits that decide about the choice, let the choice be soft in the backward pass,
or fix it. Success is judged by the unmodified network as anywhere else (``robust_core.evaluation``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ancra.attacks import AllLogits
from ancra.attention import Choice, attends
from robust_core import attacks
from robust_core.attacks.objectives import Objective, cross_entropy, dlr, margin, margin_towards
from robust_core.data import ImageSet
from robust_core.evaluation import (
    AttackCall,
    Member,
    Protocol,
    Runner,
    feature_runner,
    transfer_runner,
    weights_digest,
)

__all__ = [
    "FULL",
    "QUICK",
    "SQUARE_OUTPUTS",
    "AttackEffort",
    "adaptive_protocol",
    "adaptive_runners",
    "blocks_of",
    "straight_through",
]

LOSSES: Mapping[str, Objective] = {"ce": cross_entropy, "dlr": dlr, "margin": margin}
TEMPERATURES = (0.1, 1.0, 10.0)
SQUARE_OUTPUTS = "square-outputs"
"""The one kind of the suite's own members that needs no gradients."""


@dataclass(frozen=True)
class AttackEffort:
    """How much the members may spend: ``steps`` of every APGD, ``restarts`` of those on single outputs.

    ``queries`` are Square's, ``hard_label_queries`` and ``hard_label_images`` RayS's. ``targets``: wrong classes per
    image, those with the largest natural logits (0: all of them).
    """

    steps: int = 100
    restarts: int = 5
    queries: int = 5000
    hard_label_queries: int = 10_000
    hard_label_images: int = 100
    targets: int = 0


FULL = AttackEffort()
QUICK = AttackEffort(
    steps=12, restarts=1, queries=60, hard_label_queries=100, hard_label_images=10, targets=3
)
"""For a demo: it shows what an attacker gains at once, and is no evaluation."""


def adaptive_protocol(
    blocks: int,
    num_classes: int,
    *,
    eps: float = 8 / 255,
    effort: AttackEffort = FULL,
    sources: Mapping[str, nn.Module] | None = None,
    autoattack: bool = True,
) -> Protocol:
    """Return the adaptive suite against a network with so many attended blocks (0: a plain one).

    ``sources`` are the networks that are transferred from. Members, by the letters of their names: AutoAttack
    on the final logits; b cross-entropy, DLR and margin on each block's logits, the final ones and their sum;
    c all towards one wrong class; d the choice made soft for the gradient; e the choice fixed to each class; f
    features of training images; g transfer; h without gradients: Square on the final logits and on the largest
    margin of all, RayS by labels alone. AutoAttack and DLR need three classes.
    """
    apgd = {"eps": eps, "steps": effort.steps}
    towards = {**apgd, "targets": effort.targets or num_classes - 1}
    outputs = ["final"] if blocks == 0 else [f"block {i + 1}" for i in range(blocks)] + ["final", "sum"]
    losses = [loss for loss in LOSSES if loss != "dlr" or num_classes > 2]
    members = []
    if autoattack and num_classes > 2:  # of two classes it would be another set of attacks under its name
        members.append(
            Member("autoattack", "autoattack", {"eps": eps, "norm": "linf", "version": "standard"})
        )
    for output in outputs:
        for loss in losses:
            settings = {**apgd, "output": output, "loss": loss, "restarts": effort.restarts}
            members.append(Member(f"b {loss}, {output}", "outputs", settings))
    members.append(Member("c same class", "same-class", towards))
    if blocks:
        for temperature in TEMPERATURES:
            for loss in ("ce", "margin"):
                settings = {**apgd, "loss": loss, "temperature": temperature}
                members.append(Member(f"d soft {temperature:g}, {loss}", "soft-choice", settings))
        members.append(Member("e fixed choice", "fixed-choice", towards))
    members.append(Member("f features", "features", {**apgd, "targets": min(3, num_classes - 1)}))
    for name, network in sorted((sources or {}).items()):
        source = {"source": name, "source_weights": weights_digest(network)}
        members.append(Member(f"g transfer, {name}", "transfer", {**apgd, **source}))
    members.append(Member("h square", "square", {"eps": eps, "queries": effort.queries}))
    if blocks:
        members.append(Member("h square, blocks", SQUARE_OUTPUTS, {"eps": eps, "queries": effort.queries}))
    hard_label = {"eps": eps, "queries": effort.hard_label_queries}
    members.append(Member("h rays", "rays", hard_label, images=effort.hard_label_images))
    return Protocol("adaptive", tuple(members))


def adaptive_runners(
    references: ImageSet | None = None, sources: Mapping[str, nn.Module] | None = None
) -> dict[str, Runner]:
    """Return the kinds of members of the suite that the core has not.

    ``references``: training images for the features (None: that member does not run); ``sources``: the networks
    that are transferred from, in evaluation mode.
    """
    return {
        "outputs": _outputs,
        "same-class": _same_class,
        "soft-choice": _soft_choice,
        "fixed-choice": _fixed_choice,
        SQUARE_OUTPUTS: _square_outputs,
        "features": feature_runner(references),
        "transfer": transfer_runner(sources or {}),
    }


def blocks_of(model: nn.Module) -> int:
    """Return how many blocks of a network have auxiliary logits."""
    return len(model.attended()) if attends(model) else 0  # type: ignore[operator]


def straight_through(temperature: float) -> Choice:
    """Return the predicted class's row, whose gradient is that of a soft choice.

    The soft choice is a softmax of the auxiliary logits at ``temperature`` times their standard deviation over the
    classes, image by image.
    """

    def choice(logits: Tensor) -> Tensor:
        hard = F.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits.dtype)
        scale = temperature * logits.detach().std(dim=1, keepdim=True)
        soft = F.softmax(logits / scale.clamp_min(torch.finfo(logits.dtype).tiny), dim=1)
        return hard + (soft - soft.detach())

    return choice


def _climb(call: AttackCall, objective: Objective, position: int = 0, **arguments: Any) -> Tensor:
    """Run APGD with the call's steps on all logits of its network, which is asked with ``arguments``."""
    view: Any = call.network.view
    return attacks.apgd(
        call.network.through(AllLogits(view, arguments)),
        call.images,
        call.labels,
        eps=call.settings["eps"],
        steps=call.settings["steps"],
        restarts=call.settings.get("restarts", 1),
        loss=objective,
        early_stop=call.standing,
        observe=call.observe,
        generator=call.generator(position),
    )


def of_output(output: str, loss: str) -> Objective:
    """Return an objective of one output, "final", "block 1", ..., or of the "sum" of all, from all logits."""
    function = LOSSES[loss]

    def objective(logits: Tensor, labels: Tensor) -> Tensor:
        if output == "sum":
            return function(logits.sum(dim=1), labels)
        return function(logits[:, 0 if output == "final" else int(output.split()[1])], labels)

    return objective


def all_towards(target: int) -> Objective:
    """Return the sum over all outputs of the margin towards one class."""

    def objective(logits: Tensor, labels: Tensor) -> Tensor:
        wanted = torch.full_like(labels, target)
        return torch.stack([margin_towards(part, labels, wanted) for part in logits.unbind(dim=1)]).sum(dim=0)

    return objective


def largest_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the largest margin over all outputs ``(N,)``."""
    return torch.stack([margin(part, labels) for part in logits.unbind(dim=1)]).amax(dim=0)


def _outputs(call: AttackCall) -> Tensor:
    return _climb(call, of_output(call.settings["output"], call.settings["loss"]))


def _same_class(call: AttackCall) -> Tensor:
    return _class_by_class(call, lambda part, k: _climb(part, all_towards(k), k), true_class=False)


def _soft_choice(call: AttackCall) -> Tensor:
    return _climb(
        call, of_output("final", call.settings["loss"]), choice=straight_through(call.settings["temperature"])
    )


def _fixed_choice(call: AttackCall) -> Tensor:
    return _class_by_class(call, _with_choice, true_class=True)


def _with_choice(call: AttackCall, target: int) -> Tensor:
    """Attack the final logits with all weights chosen by one class, whatever the image shows."""

    def choice(logits: Tensor) -> Tensor:
        return F.one_hot(logits.new_full((len(logits),), target, dtype=torch.int64), logits.shape[1]).to(
            logits.dtype
        )

    return _climb(call, of_output("final", "margin"), target, choice=choice)


def _class_by_class(
    call: AttackCall, attack: Callable[[AttackCall, int], Tensor], *, true_class: bool
) -> Tensor:
    """Let ``attack(part, k)`` run for each class k, on the images that have it among their targets and still stand."""
    view: Any = call.network.view
    with torch.no_grad():
        logits = call.network.passing(view, call.images)
    wrong = logits.scatter(1, call.labels[:, None], -torch.inf)
    wanted = torch.zeros_like(logits, dtype=torch.bool)
    wanted.scatter_(1, wrong.topk(min(call.settings["targets"], logits.shape[1] - 1), dim=1).indices, True)
    if true_class:
        wanted.scatter_(1, call.labels[:, None], True)
    result = call.images.clone()
    everyone = torch.arange(len(call.labels), device=call.labels.device)
    for k in range(logits.shape[1]):
        rows = everyone[wanted[:, k] & call.standing(everyone)]
        if len(rows):
            result[rows] = attack(call.part(rows), k)
    return result


def _square_outputs(call: AttackCall) -> Tensor:
    view: Any = call.network.view
    return attacks.square(
        call.network.through(AllLogits(view)),
        call.images,
        call.labels,
        loss=largest_margin,
        early_stop=call.standing,
        observe=call.observe,
        generator=call.generator(),
        **call.settings,
    )
