"""The choice of negatives: images of other classes in the batch (ANCRA, section 2.3), as tensor algebra.

``N`` anchors, ``B`` images of the batch (with several processes: of the global one), ``K`` classes. Nothing is
read back from the device, no loop runs over the batch, and all randomness is given as uniform numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robust_core.errors import UserError, unknown_name

__all__ = [
    "FIRST_STRATEGY_EPOCH",
    "STRATEGIES",
    "Draws",
    "Negatives",
    "candidates",
    "draw",
    "pick_negatives",
    "random_negatives",
]

STRATEGIES = ("random", "soft", "hard", "easy")
FIRST_STRATEGY_EPOCH = 11
"""The first epoch (from 1) in which another strategy than random acts, as published."""


class Negatives(NamedTuple):
    """``indices`` int64 ``(N, m)`` into the batch; ``found`` bool ``(N, m)``: False where there was no candidate."""

    indices: Tensor
    found: Tensor


class Draws(NamedTuple):
    """Uniform numbers in [0, 1): ``classes`` ``(N, c)``, and ``images`` ``(N, c, s)`` for ``s`` images of each."""

    classes: Tensor
    images: Tensor


def draw(
    anchors: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    *,
    classes: int = 1,
    images: int = 1,
) -> Draws:
    """Return the numbers of one choice, from the generator's device, moved to ``device``."""
    return Draws(
        torch.rand(anchors, classes, generator=generator, device=generator.device).to(device),
        torch.rand(anchors, classes, images, generator=generator, device=generator.device).to(device),
    )


def random_negatives(anchor_labels: Tensor, labels: Tensor, draws: Draws, *, num_classes: int) -> Negatives:
    """Return ``m = c s`` negatives of each anchor: ``s`` images of each of ``c`` classes, as many as were drawn.

    Classes are drawn uniformly among the other ones with at least ``s`` members in the batch, images uniformly
    within each, all distinct. A batch with fewer such classes gives as many as it has.
    """
    in_order, by_class = labels.sort(stable=True)
    first = torch.searchsorted(in_order, torch.arange(num_classes + 1, device=labels.device))
    members = first.diff()
    eligible = members >= draws.images.shape[2]
    upto = eligible.cumsum(dim=0)
    total = upto[-1:]
    # so many eligible classes past the anchor's own, in a circle: all but that one
    past = _distinct(draws.classes, (total - eligible.long()).take(anchor_labels))
    rank = (upto.take(anchor_labels)[:, None] + past) % total.clamp(min=1)
    chosen = torch.searchsorted(upto, rank, right=True).clamp(max=num_classes - 1)
    within = _distinct(draws.images, members.take(chosen))
    # where there is no such class the places mean nothing, but stay inside
    indices = by_class.take((first.take(chosen)[:, :, None] + within).clamp(0, len(labels) - 1))
    return Negatives(indices.flatten(1), (past >= 0)[:, :, None].expand_as(indices).flatten(1))


def _distinct(uniform: Tensor, counts: Tensor) -> Tensor:
    """Return distinct numbers below ``counts`` ``(...)``, as many as ``uniform`` ``(..., s)`` has; all sets alike.

    Floyd's way: each draw reaches one further than the one before, and what was drawn already gives way to that
    end. Where ``counts`` is below ``s`` the numbers that are not there are negative.
    """
    size = uniform.shape[-1]
    chosen: list[Tensor] = []
    for step in range(size):
        end = counts[..., None] - (size - step)
        drawn = (uniform[..., step : step + 1] * (end + 1)).long().minimum(end)
        for before in chosen:
            drawn = torch.where(drawn == before, end, drawn)
        chosen.append(drawn)
    return chosen[0] if size == 1 else torch.cat(chosen, dim=-1)


def candidates(
    strategy: str, anchor_labels: Tensor, anchor_predictions: Tensor, labels: Tensor, predictions: Tensor
) -> Tensor:
    """Return which images ``(N, B)`` an anchor may take, always of another class.

    ``soft``: predicted as the anchor is; ``hard``: predicted as the anchor's label; ``easy``: as neither.
    Raises ``UserError`` for another strategy.
    """
    other = labels[None, :] != anchor_labels[:, None]
    as_anchor = predictions[None, :] == anchor_predictions[:, None]
    as_label = predictions[None, :] == anchor_labels[:, None]
    if strategy == "soft":
        return other & as_anchor
    if strategy == "hard":
        return other & as_label
    if strategy == "easy":
        return other & ~as_label & ~as_anchor
    raise unknown_name("strategy", strategy, STRATEGIES)


def pick_negatives(
    strategy: str,
    labels: Tensor,
    logits: Tensor | None,
    draws: Draws,
    *,
    num_classes: int,
    rows: slice = slice(None),
) -> Negatives:
    """Return ``m`` negatives for each anchor of the batch, as many as were drawn.

    ``random`` needs no logits. The others take, among their candidates, the ``m`` with the largest logit of the
    anchor's label; where there are fewer, the rest comes by the random rule.

    Args:
        strategy: one of ``STRATEGIES``.
        labels: int64 ``(B,)``; logits: ``(B, K)``, natural, in evaluation mode.
        draws: for ``N`` anchors; as many numbers are used whatever the strategy.
        rows: which images of the batch are the anchors (those of this process).

    Raises:
        UserError: for an unknown strategy, or one that needs logits without them.
    """
    anchor_labels = labels[rows]
    drawn = random_negatives(anchor_labels, labels, draws, num_classes=num_classes)
    if strategy == "random":
        return drawn
    if logits is None:
        raise UserError(f"The strategy '{strategy}' chooses by logits (B, K): give those of the batch.")
    count = drawn.indices.shape[1]
    ranked, by_rule = _best(strategy, rows, labels, logits.detach(), count)
    if count == 1:
        return Negatives(torch.where(by_rule, ranked, drawn.indices), by_rule | drawn.found)
    repeated = ((drawn.indices[:, :, None] == ranked[:, None, :]) & by_rule[:, None, :]).any(dim=2)
    # what the strategy found first, then what the random rule adds to it
    indices, found = torch.cat([ranked, drawn.indices], 1), torch.cat([by_rule, drawn.found & ~repeated], 1)
    order = (~found).int().argsort(dim=1, stable=True)[:, :count]
    return Negatives(indices.gather(1, order), found.gather(1, order))


def _best(strategy: str, rows: slice, labels: Tensor, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` best candidates ``(N, count)`` of each anchor, and which of them there are.

    What :func:`candidates` allows comes by predicted class, so nothing of the size ``(N, B)`` is ever made.
    """
    predictions = logits.max(dim=1).indices
    own, predicted = labels[rows], predictions[rows]
    values, places = _best_by_prediction(labels, logits, predictions, count)
    if strategy in ("soft", "hard"):
        group = predicted if strategy == "soft" else own
        return places[own, group], values[own, group] > -torch.inf
    if strategy != "easy":
        raise unknown_name("strategy", strategy, STRATEGIES)
    closed = torch.stack([own, predicted], dim=1)[:, :, None].expand(-1, -1, count)
    offered = values[own].scatter(1, closed, -torch.inf).flatten(1)
    # max takes a fraction of the time of topk
    best, chosen = offered.max(dim=1, keepdim=True) if count == 1 else offered.topk(count, dim=1)
    return places[own].flatten(1).gather(1, chosen), best > -torch.inf


def _best_by_prediction(
    labels: Tensor, logits: Tensor, predictions: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Return the ``count`` largest logits of each class among the other classes' images predicted as each.

    And whose they are, both ``(K, K, count)``; -inf where there are fewer.
    """
    size, num_classes = logits.shape
    images = torch.arange(size, device=logits.device)
    scores = logits.scatter(1, labels[:, None], -torch.inf).t()  # (K, B), without each class's own images
    groups = predictions.expand_as(scores)
    none = scores.new_full((num_classes, num_classes), -torch.inf)
    nobody = images.new_full((num_classes, num_classes), size - 1)
    values: list[Tensor] = []
    places: list[Tensor] = []
    for step in range(count):
        if step:
            scores = scores.masked_fill(images == places[-1].gather(1, groups), -torch.inf)
        values.append(none.scatter_reduce(1, groups, scores, "amax"))
        is_best = scores == values[-1].gather(1, groups)
        places.append(nobody.scatter_reduce(1, groups, images.where(is_best, size - 1), "amin"))
    return torch.stack(values, dim=2), torch.stack(places, dim=2)
