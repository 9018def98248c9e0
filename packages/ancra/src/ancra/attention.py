"""Reverse attention: the last blocks' features weighted by the classifier's row of one class (ANCRA, section 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_core.models import Network, PooledHead

__all__ = [
    "ATTENTIONS",
    "Choice",
    "Outputs",
    "ReverseAttention",
    "attends",
    "stacked",
    "unstacked",
    "weigh",
    "with_auxiliary",
]

ATTENTIONS = ("reverse", "ones", "own")
"""``reverse``: the network's classifier; ``ones``: no weighting, auxiliary logits alone (deep supervision);
``own``: a classifier of its own for each block (CAS, Bai et al. 2021)."""

Choice = Callable[[Tensor], Tensor]
"""From auxiliary logits ``(N, K)`` to the share ``(N, K)`` of each classifier row in the weights."""


class Outputs(NamedTuple):
    """Final logits ``(N, K)`` and the auxiliary logits ``(N, K)`` of each attended block."""

    logits: Tensor
    auxiliary: tuple[Tensor, ...] = ()


def attends(network: object) -> bool:
    """Return whether a network gives auxiliary logits."""
    return isinstance(network, ReverseAttention)


def stacked(outputs: Outputs) -> Tensor:
    """Return ``(N, 1 + blocks, K)``, the final logits first: one tensor, as attacks take it."""
    return torch.stack([outputs.logits, *outputs.auxiliary], dim=1)


def unstacked(logits: Tensor) -> Outputs:
    """Return the outputs that :func:`stacked` made one tensor of."""
    final, *auxiliary = logits.unbind(dim=1)
    return Outputs(final, tuple(auxiliary))


def with_auxiliary(loss: Callable[..., Tensor], *outputs: Outputs, cr: float) -> Tensor:
    """Return ``loss`` of the final logits plus ``cr`` times its mean over the blocks (the paper's "+" losses).

    ``loss`` takes one tensor of logits ``(N, K)`` per given pass and gives a scalar or one value per image.
    Without blocks only the first part is left.
    """
    total = loss(*(output.logits for output in outputs))
    if cr == 0.0 or not outputs[0].auxiliary:
        return total
    blocks = zip(*(output.auxiliary for output in outputs), strict=True)
    return total + cr * torch.stack([loss(*logits) for logits in blocks]).mean(dim=0)


def weigh(features: Tensor, rows: Tensor) -> Tensor:
    """Return features ``(N, C, h, w)`` times classifier rows ``(N, C p p)``, spread over the ``p x p`` windows.

    ``p`` is 1 where the classifier sees global averages; PreActResNet at 64 pixels sees 2 x 2 (row order C, p, p).
    """
    count, channels, height, width = features.shape
    side = round((rows.shape[1] // channels) ** 0.5)
    spread = rows.to(features.dtype).view(count, channels, side, side)
    if side > 1:
        spread = spread.repeat_interleave(height // side, 2).repeat_interleave(width // side, 3)
    return features * spread


def _pooled(features: Tensor, pool: int | None) -> Tensor:
    return features.mean(dim=(2, 3)) if pool is None else F.avg_pool2d(features, pool).flatten(1)


class ReverseAttention(Network):
    """A network whose last blocks are followed by auxiliary logits and a weighting of their features.

    Behind each attended block: ``a = classifier(pool(h))``; ``h * W[k]`` goes on, with the classifier's row of
    class ``k``: the given label, or without one the predicted class ``argmax a``, whose choice no gradient sees.
    The last weighted map is ``forward_features``. A family says what comes before, which blocks, and what
    follows each (:meth:`trunk`, :meth:`attended`, :meth:`finish`).
    """

    attention = "reverse"
    pool: int | None = None

    def trunk(self, images: Tensor) -> Tensor:
        """Return the input of the first attended block."""
        raise NotImplementedError

    def attended(self) -> Sequence[nn.Module]:
        """Return the blocks whose output is weighted."""
        raise NotImplementedError

    def finish(self, features: Tensor) -> Tensor:
        """Return a block's output as the classifier sees it; the network's shared norm and relu, if any."""
        return features

    def classifier(self) -> nn.Linear:
        """Return the network's classifier."""
        raise NotImplementedError

    def own_classifiers(self) -> nn.ModuleList | None:
        """Return a classifier for each block (``attention`` "own"), or None."""
        return self._modules.get("attention_classifiers")  # type: ignore[return-value]

    def add_own_classifiers(self) -> None:
        """Give every attended block a classifier of its own."""
        final = self.classifier()
        count = len(self.attended())
        made = (nn.Linear(final.in_features, final.out_features) for _ in range(count))
        self.attention_classifiers = nn.ModuleList(made)

    def forward(  # type: ignore[override]
        self,
        images: Tensor,
        attention_labels: Tensor | None = None,
        auxiliary: bool = False,
        choice: Choice | None = None,
    ) -> Tensor | Outputs:
        """Return logits ``(N, K)``, with ``auxiliary`` also those of the blocks.

        ``attention_labels`` int64 ``(N,)`` choose the weights (None: the predicted class, or ``choice`` of the
        auxiliary logits, with which an attack may let a gradient through). No mode of the network plays a part.
        """
        features, logits = self.attend(images, attention_labels, choice)
        # in a low-precision frozen view the classifier stays float32
        final = self.forward_head(features.to(self.classifier().weight.dtype))
        return Outputs(final, logits) if auxiliary else final

    def attend(
        self, images: Tensor, attention_labels: Tensor | None = None, choice: Choice | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the weighted map of the last block ``(N, C, h, w)`` and the auxiliary logits of each."""
        own = self.own_classifiers()
        features = self.trunk(images)
        found = []
        for index, block in enumerate(self.attended()):
            features = self.finish(block(features))
            linear = self.classifier() if own is None else own[index]
            weight: Tensor = linear.weight  # type: ignore[assignment]
            logits = linear(_pooled(features, self.pool).to(weight.dtype))
            found.append(logits)
            if self.attention == "ones":
                continue
            if choice is not None and attention_labels is None:
                rows = choice(logits) @ weight
            else:
                classes = logits.argmax(dim=1) if attention_labels is None else attention_labels
                # not weight[classes], whose gradient adds up in another order from run to run on several threads
                rows = F.embedding(classes, weight)
            features = weigh(features, rows)
        return features, tuple(found)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the weighted map of the last block ``(N, C, h, w)``."""
        return self.attend(images)[0]

    def pooled_head(self) -> PooledHead:
        """Return the head: pooling and the classifier; the norm, if any, is part of the features."""
        return PooledHead(norm=None, relu=False, pool=self.pool, linear=self.classifier())
