"""(e) The choice of negatives against the published rule in plain Python, (f) the contrast against a loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ancra.contrast import asymmetric_contrast
from ancra.negatives import STRATEGIES, Negatives, candidates, draw, pick_negatives
from benchmarks.speed.clock import alternate, plan_rounds, seconds_of
from benchmarks.speed.rows import Row
from benchmarks.speed.setting import Setting, say
from robust_core.randomness import generator_for
from robust_core.training.machine import can_compile

__all__ = [
    "compare_choices",
    "compare_contrasts",
    "published_candidates",
    "published_contrast",
    "published_pick",
]

BATCH, CLASSES = 512, 10
REPEATS = 50
"""Choices (contrasts) per reading of the clock: one takes less than a millisecond, the first after plain Python two."""


def published_candidates(
    strategy: str, anchor: int, labels: Sequence[int], predictions: Sequence[int]
) -> list[int]:
    """Return the images that an anchor may take by soft, hard or easy, as the rule says it."""
    found = []
    for other in range(len(labels)):
        if labels[other] == labels[anchor]:
            continue
        if strategy == "soft":
            fits = predictions[other] == predictions[anchor]
        elif strategy == "hard":
            fits = predictions[other] == labels[anchor]
        else:
            fits = predictions[other] != labels[anchor] and predictions[other] != predictions[anchor]
        if fits:
            found.append(other)
    return found


def published_pick(
    strategy: str, labels: Tensor, logits: Tensor | None, generator: torch.Generator
) -> list[int]:
    """Return one negative of each anchor by the published rule in plain Python, on lists."""
    classes = labels.tolist()
    predictions, scores = ([], []) if logits is None else (logits.argmax(dim=1).tolist(), logits.tolist())
    chosen = []
    for anchor, own in enumerate(classes):
        found = [] if strategy == "random" else published_candidates(strategy, anchor, classes, predictions)
        if found:
            chosen.append(max(found, key=lambda other: scores[other][own]))
            continue
        others = sorted({label for label in classes if label != own})
        drawn = others[_below(len(others), generator)]
        members = [image for image, label in enumerate(classes) if label == drawn]
        chosen.append(members[_below(len(members), generator)])
    return chosen


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator))


def published_contrast(natural_logits: Tensor, negative_logits: Tensor) -> Tensor:
    """Return the mean contrast (alpha 1) pair by pair."""
    natural, negative = F.softmax(natural_logits, dim=1).detach(), F.softmax(negative_logits, dim=1)
    total = torch.zeros((), device=natural.device)
    for anchor, other in zip(natural, negative, strict=True):
        if anchor.argmax() == other.argmax():
            total = total + (anchor.max() * other.max()).sqrt()
    return total / len(natural)


def _problem(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return labels and logits of a network that is right about half of the time."""
    generator = generator_for(0, "speed-negatives")
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    logits = torch.randn(BATCH, CLASSES, generator=generator) + 1.7 * F.one_hot(labels, CLASSES)
    return labels.to(device), logits.to(device)


def _forms(device: torch.device) -> dict[str, Callable[..., Negatives]]:
    """Return the rule as it is and, where there is a compiler, as one graph."""
    forms: dict[str, Callable[..., Negatives]] = {"": pick_negatives}
    works, reason = can_compile(str(device))
    if not works:
        say(f"(e) {reason}; no compiled rows")
        return forms
    options: dict[str, Any] = {
        "cpp_wrapper": True
    }  # what stays outside of kernels is called without Python, too
    return forms | {
        ", compiled": torch.compile(pick_negatives, fullgraph=True, dynamic=False, options=options)
    }


def _pick(
    rule: Callable[..., Negatives], strategy: str, labels: Tensor, logits: Tensor, generator: torch.Generator
) -> Tensor:
    draws = draw(len(labels), generator, labels.device)
    return rule(strategy, labels, logits, draws, num_classes=logits.shape[1]).indices[:, 0]


def agreement(rule: Callable[..., Negatives], strategy: str, labels: Tensor, logits: Tensor) -> float:
    """Return for how many anchors both sides have the same candidates and, where these decide, the same choice.

    By the random rule: the share of our choices that it allows.
    """
    guesses = logits.argmax(dim=1)
    classes: list[int] = labels.tolist()
    predictions: list[int] = guesses.tolist()
    ours: list[int] = _pick(rule, strategy, labels, logits, generator_for(0, "speed-negatives")).tolist()
    if strategy == "random":
        return sum(classes[other] != own for other, own in zip(ours, classes, strict=True)) / len(ours)
    theirs = published_pick(strategy, labels, logits, generator_for(0, "speed-negatives"))
    allowed = candidates(strategy, labels, guesses, labels, guesses)
    same = 0
    for anchor, row in enumerate(allowed):
        found = published_candidates(strategy, anchor, classes, predictions)
        agreed = row.nonzero().flatten().tolist() == found
        same += agreed and (not found or ours[anchor] == theirs[anchor])
    return same / len(ours)


def _repeated(run: Callable[[], object]) -> None:
    for _ in range(REPEATS):
        run()


def _row(
    setting: Setting,
    part: str,
    name: str,
    sides: tuple[Callable[[], object], Callable[[], object]],
    *,
    seconds: float,
    target: float | None,
    equal: float,
) -> Row:
    """Return the row of ours against plain Python, both timed ``REPEATS`` times a round."""
    runs = {side: partial(_repeated, run) for side, run in zip(("ours", "plain"), sides, strict=True)}
    whole = sum(seconds_of(run, setting.device) for run in runs.values())
    rounds = plan_rounds(whole, seconds, least=setting.least_rounds)
    say(f"({part}) {name}: {rounds} rounds of about {whole:.1f} s, {REPEATS} each")
    times = alternate(runs, rounds, setting.device)
    return Row(
        part=part,
        ours=name,
        other="plain Python",
        our_times=[time / REPEATS for time in times["ours"]],
        other_times=[time / REPEATS for time in times["plain"]],
        target=target,
        equal=equal,
        needs_equal=True,
        note=f"batch {BATCH}, {CLASSES} classes",
    )


def compare_choices(setting: Setting) -> list[Row]:
    """Return one row per strategy and form of ours, our random numbers included."""
    labels, logits = _problem(setting.device)
    ours, theirs = (generator_for(0, "speed-negatives", side) for side in (0, 1))
    return [
        _row(
            setting,
            "e",
            f"negatives, {strategy}{form}",
            (
                partial(_pick, rule, strategy, labels, logits, ours),
                partial(published_pick, strategy, labels, logits, theirs),
            ),
            seconds=0.01 * setting.seconds,
            target=20.0 if strategy == "random" else 50.0,
            equal=agreement(rule, strategy, labels, logits),
        )
        for form, rule in _forms(setting.device).items()
        for strategy in STRATEGIES
    ]


def compare_contrasts(setting: Setting) -> list[Row]:
    """Return the row of value and gradient."""
    _, natural = _problem(setting.device)
    negative = natural.roll(1, dims=0).requires_grad_()

    def gradient(contrast: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        (found,) = torch.autograd.grad(contrast(natural, negative).mean(), negative)
        return found

    ours, plain = gradient(asymmetric_contrast), gradient(published_contrast)
    equal = float(((ours - plain).abs() <= 1e-6 * plain.abs().max()).float().mean())
    sides = partial(gradient, asymmetric_contrast), partial(gradient, published_contrast)
    return [
        _row(
            setting,
            "f",
            "contrast, forward and backward",
            sides,
            seconds=0.01 * setting.seconds,
            target=None,
            equal=equal,
        )
    ]
