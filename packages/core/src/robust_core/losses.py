"""What a batch of logits costs: cross-entropy, TRADES and MART, as scalars (mean over the batch); its accuracy.

``logits`` are ``(N, K)``, float32 or float64, ``labels`` int64 ``(N,)``. No loss runs an attack, sees an
optimizer or changes an argument.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "MartTerms",
    "TradesTerms",
    "accuracy",
    "cross_entropy",
    "kl_divergence",
    "mart",
    "mart_terms",
    "trades",
    "trades_terms",
]

# The constants of MART's published formula.
_MARGIN_OFFSET = 1.0001
_WEIGHT_OFFSET = 1.0000001
_LOG_FLOOR = 1e-12


class TradesTerms(NamedTuple):
    """``natural``: cross-entropy of the natural images; ``robust``: mean KL to the adversarial prediction."""

    natural: Tensor
    robust: Tensor


class MartTerms(NamedTuple):
    """``cross_entropy`` and ``margin`` make the boosted cross-entropy; ``robust`` is the weighted KL."""

    cross_entropy: Tensor
    margin: Tensor
    robust: Tensor


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share of right predictions, detached."""
    return (logits.detach().argmax(dim=1) == labels).float().mean()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy."""
    return F.cross_entropy(logits, labels)


def kl_divergence(natural_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
    """Return ``KL(p || q)`` of each image ``(N,)``, p natural, q adversarial, with gradients through both."""
    log_natural = F.log_softmax(natural_logits, dim=1)
    return (log_natural.exp() * (log_natural - F.log_softmax(adversarial_logits, dim=1))).sum(dim=1)


def trades_terms(natural_logits: Tensor, adversarial_logits: Tensor, labels: Tensor) -> TradesTerms:
    """Return the two terms of TRADES, the second without its factor beta."""
    return TradesTerms(
        natural=F.cross_entropy(natural_logits, labels),
        robust=kl_divergence(natural_logits, adversarial_logits).mean(),
    )


def trades(natural_logits: Tensor, adversarial_logits: Tensor, labels: Tensor, *, beta: float) -> Tensor:
    """Return ``CE(z(x), y) + beta KL(p(x) || p(x'))`` (Zhang et al. 2019, eq. 5)."""
    terms = trades_terms(natural_logits, adversarial_logits, labels)
    return terms.natural + beta * terms.robust


def mart_terms(natural_logits: Tensor, adversarial_logits: Tensor, labels: Tensor) -> MartTerms:
    """Return the three terms of MART, the last without its factor beta.

    ``p`` natural and ``q`` adversarial probabilities, ``k`` the most probable wrong class of ``q``:
    ``CE(z(x'), y)``; ``-log(1.0001 - q_k + 1e-12)``;
    ``(1.0000001 - p_y) sum_j p_j (log p_j - log(q_j + 1e-12))``.
    """
    log_natural = F.log_softmax(natural_logits, dim=1)
    natural = log_natural.exp()
    adversarial = F.softmax(adversarial_logits, dim=1)
    wrong = adversarial.scatter(1, labels[:, None], -1.0).max(dim=1).values
    of_label = natural.gather(1, labels[:, None]).squeeze(1)
    divergence = (natural * (log_natural - torch.log(adversarial + _LOG_FLOOR))).sum(dim=1)
    return MartTerms(
        cross_entropy=F.cross_entropy(adversarial_logits, labels),
        margin=-torch.log(_MARGIN_OFFSET - wrong + _LOG_FLOOR).mean(),
        robust=((_WEIGHT_OFFSET - of_label) * divergence).mean(),
    )


def mart(natural_logits: Tensor, adversarial_logits: Tensor, labels: Tensor, *, beta: float) -> Tensor:
    """Return MART's loss (Wang et al. 2020, eq. 12) with the constants of its published formula."""
    terms = mart_terms(natural_logits, adversarial_logits, labels)
    return terms.cross_entropy + terms.margin + beta * terms.robust
