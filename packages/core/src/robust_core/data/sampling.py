"""Group-balanced sampling: which images an epoch draws when every group shall be equally likely."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_core.data.groups import group_counts
from robust_core.errors import UserError
from robust_core.randomness import generator_for

__all__ = ["balanced_order", "sample_weights"]


def sample_weights(groups: Tensor, counts: Tensor) -> Tensor:
    """Return the weight ``N / n_g`` of each image, float32 ``(N,)``, for its group ``(N,)`` and counts ``(G,)``.

    Computed as reciprocal times N, as published (golden README, part 1). A group that ``counts`` gives no images
    must not occur.
    """
    empty = counts[groups] <= 0
    if bool(empty.any()):
        at = int(empty.nonzero()[0])
        raise UserError(
            f"Image {at} belongs to group {int(groups[at])}, which has no images by the counts given; count the"
            " groups of these images."
        )
    return (counts.float().reciprocal() * len(groups))[groups]


def balanced_order(groups: Tensor, seed: int, epoch: int) -> Tensor:
    """Return N positions for an epoch, int64 ``(N,)`` on the CPU, drawn with replacement from images of ``groups``.

    Every group that occurs is equally likely, and within it every image (``--reweight_groups``). The draw depends
    on ``seed`` and ``epoch`` only; it is that of the global batches, to be sliced by rank.
    """
    members = groups.cpu()
    counts = group_counts(members, int(members.max()) + 1)
    weights = sample_weights(members, counts).double()
    generator = generator_for(seed, "order", epoch)
    return torch.multinomial(weights, len(members), replacement=True, generator=generator)
