"""The choice of negatives: images of other classes in the batch (ANCRA, section 2.3), as tensor algebra.

``N`` anchors, ``B`` images of the batch (with several processes: of the global one), ``K`` classes. Nothing is
read back from the device, no loop runs over the batch, and all randomness is given as uniform numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
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
    """Uniform numbers in [0, 1): ``classes`` ``(N, K)`` and ``images`` ``(N, B)``."""

    classes: Tensor
    images: Tensor


def draw(
    anchors: int,
    images: int,
    num_classes: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Draws:
    """Return the numbers of one choice, from the generator's device, moved to ``device``."""
    return Draws(
        torch.rand(anchors, num_classes, generator=generator, device=generator.device).to(device),
        torch.rand(anchors, images, generator=generator, device=generator.device).to(device),
    )


def random_negatives(
    anchor_labels: Tensor, labels: Tensor, draws: Draws, *, classes: int = 1, images: int = 1
) -> Negatives:
    """Return ``classes`` x ``images`` negatives of each anchor.

    Classes are drawn uniformly among the other ones with at least ``images`` members in the batch, images
    uniformly within each, all distinct. A batch with fewer such classes gives as many as it has.
    """
    num_classes = draws.classes.shape[1]
    members = F.one_hot(labels, num_classes)
    eligible = (members.sum(dim=0) >= images) & ~F.one_hot(anchor_labels, num_classes).bool()
    # distinct uniform draws: the largest of independent keys
    keys, chosen = draws.classes.masked_fill(~eligible, -1.0).topk(classes, dim=1)
    inside = labels[None, None, :] == chosen[:, :, None]
    image_keys = draws.images[:, None, :].masked_fill(~inside, -1.0)
    # more images than the batch has: no class is eligible, and the indices mean nothing
    indices = image_keys.topk(min(images, len(labels)), dim=2).indices
    indices = F.pad(indices, (0, images - indices.shape[2]))
    found = (keys >= 0.0)[:, :, None].expand_as(indices)
    return Negatives(indices.flatten(1), found.flatten(1))


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
    classes: int = 1,
    images: int = 1,
    rows: slice = slice(None),
) -> Negatives:
    """Return ``m = classes * images`` negatives for each anchor of the batch.

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
    drawn = random_negatives(anchor_labels, labels, draws, classes=classes, images=images)
    if strategy == "random":
        return drawn
    if logits is None:
        raise UserError(f"The strategy '{strategy}' chooses by logits (B, K): give those of the batch.")
    predictions = logits.argmax(dim=1)
    allowed = candidates(strategy, anchor_labels, predictions[rows], labels, predictions)
    scores = logits.detach().t()[anchor_labels].masked_fill(~allowed, -torch.inf)
    wanted = classes * images
    best, ranked = scores.topk(min(wanted, scores.shape[1]), dim=1)
    by_rule = best > -torch.inf
    repeated = ((drawn.indices[:, :, None] == ranked[:, None, :]) & by_rule[:, None, :]).any(dim=2)
    # what the strategy found first, then what the random rule adds to it
    indices, found = torch.cat([ranked, drawn.indices], 1), torch.cat([by_rule, drawn.found & ~repeated], 1)
    order = (~found).int().argsort(dim=1, stable=True)[:, :wanted]
    return Negatives(indices.gather(1, order), found.gather(1, order))
