"""Projected gradient ascent (Madry et al. 2018), L-inf and L2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust_core.attacks.balls import make_ball
from robust_core.attacks.checks import (
    CheckedObjective,
    check_call,
    check_count,
    check_labels_fit,
    check_reference,
)
from robust_core.attacks.engine import Classifier, ascend, in_layout_of, natural_logits, network_for
from robust_core.attacks.objectives import Objective, named
from robust_core.attacks.search import KEEPS, Observer, Search, watcher
from robust_core.attacks.starts import start_source
from robust_core.errors import unknown_name

__all__ = ["pgd"]


def pgd(
    model: nn.Module | Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    step_size: float | Tensor,
    steps: int,
    norm: str = "linf",
    random_start: str | bool = "uniform",
    start: Tensor | None = None,
    restarts: int = 1,
    targeted: bool = False,
    loss: str | Objective = "ce",
    reference_logits: Tensor | None = None,
    keep: str = "last",
    early_stop: bool = False,
    observe: Observer | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return adversarial images ``(N, ...)`` within ``eps`` of the images and within [0, 1].

    Args:
        model: a module (attacked through its frozen view), a frozen view, or any function images -> logits.
        images: float32 or float64, in [0, 1]; the result has their dtype, whatever the network's precision.
        labels: int64 ``(N,)``: the true classes, or with ``targeted`` the classes to reach.
        eps: in pixel units (8/255): a number, ``(N,)``, or (L-inf) broadcastable per pixel; 0 gives the
            images back to the bit.
        step_size: in the units of ``norm``; a number or ``(N,)``.
        random_start: ``uniform`` in the ball (True), ``normal`` (0.001 N(0, 1)), clipped to ball and box, or
            False: the images themselves.
        start: a given start instead, of the images' shape. It may lie outside of ball and box: the first step
            brings it back, and it then counts neither for ``keep``, ``early_stop`` nor ``observe``.
        restarts: runs from new random starts; each image keeps its run with the largest final objective.
        loss: ``ce``, ``kl`` (to the natural prediction), ``margin``, ``dlr``, or a function
            (logits, labels) -> ``(N,)`` to maximise (minimised with ``targeted``).
        reference_logits: for ``kl``: the natural logits ``(N, K)``, computed by one extra pass if not given.
        keep: ``last`` iterate (what training and published figures use) or ``best``: largest objective of all
            iterates, the last one included, at the cost of one forward pass.
        early_stop: an image leaves the batch with its first iterate that fools the model; this costs one
            forward pass and a read-back a step.
        observe: called with every iterate and the positions ``(n,)`` of its images, start and last included.
        generator: source of all randomness; None: a fresh one with seed 0, so equal calls give equal results.

    Raises:
        UserError: images outside of [0, 1], labels out of range, a negative ``eps``, an unknown name, logits
            or a loss that are NaN or have no gradient, ...
    """
    highest = check_call(images, labels, eps=eps, step_size=step_size, steps=steps, norm=norm)
    check_count("restarts", restarts, 1)
    if keep not in KEEPS:
        raise unknown_name("keep", str(keep), KEEPS)
    network = network_for(model, images)

    def reference() -> Tensor:
        if reference_logits is not None:
            return check_reference(reference_logits, labels)
        natural = natural_logits(network, images)
        check_labels_fit(highest, natural, len(labels))
        return natural

    objective = CheckedObjective(named(loss, targeted=targeted, reference=reference), highest)
    begin = start_source(images, eps, random_start=random_start, start=start, norm=norm, generator=generator)
    if restarts == 1 and keep == "last" and not early_stop:
        result = ascend(
            network,
            images,
            labels,
            start=begin(),
            eps=eps,
            step_size=step_size,
            steps=steps,
            objective=objective,
            norm=norm,
            visit=None if observe is None else watcher(observe, make_ball(images, eps, norm), len(images)),
        )
        return in_layout_of(result, images)
    search = Search(network, images, labels, eps=eps, norm=norm, step_size=step_size, objective=objective)
    for _ in range(restarts):
        search.run(
            begin(), steps, best=keep == "best", early_stop=early_stop, targeted=targeted, observe=observe
        )
    return in_layout_of(search.record.images, images)
