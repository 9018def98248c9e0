"""What ANCRA's outputs cost: each loss on the final logits and, weighted, on the blocks' auxiliary ones.

All are scalars, means over the batch, and run no attack.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ancra.attention import Outputs, with_auxiliary
from ancra.contrast import asymmetric_contrast
from ancra.negatives import Negatives
from robust_core.losses import kl_divergence, mart_terms

__all__ = ["exclusion", "mart_terms_of", "natural_and_robust", "pgd_term"]


def natural_and_robust(
    natural: Outputs, adversarial: Outputs, labels: Tensor, *, cr: float
) -> tuple[Tensor, Tensor]:
    """Return CE+ of the natural images and KL+ from them to the adversarial ones (ANCRA-TRADES, section 2.5)."""
    return (
        with_auxiliary(lambda logits: F.cross_entropy(logits, labels), natural, cr=cr),
        with_auxiliary(lambda p, q: kl_divergence(p, q).mean(), natural, adversarial, cr=cr),
    )


def pgd_term(adversarial: Outputs, labels: Tensor, *, cr: float) -> Tensor:
    """Return CE+ of the adversarial images (ANCRA-PGD; ours, the paper's tables name it without a definition)."""
    return with_auxiliary(lambda logits: F.cross_entropy(logits, labels), adversarial, cr=cr)


def mart_terms_of(
    natural: Outputs, adversarial: Outputs, labels: Tensor, *, cr: float
) -> tuple[Tensor, Tensor]:
    """Return BCE+ of the adversarial images and the weighted KL+ (ANCRA-MART; ours, as :func:`pgd_term`)."""

    def boosted(p: Tensor, q: Tensor) -> Tensor:
        terms = mart_terms(p, q, labels)
        return terms.cross_entropy + terms.margin

    def weighted(p: Tensor, q: Tensor) -> Tensor:
        return mart_terms(p, q, labels).robust

    return (
        with_auxiliary(boosted, natural, adversarial, cr=cr),
        with_auxiliary(weighted, natural, adversarial, cr=cr),
    )


def exclusion(
    natural: Outputs, negative: Outputs, negatives: Negatives, *, alpha: float, cr: float
) -> Tensor:
    """Return ANC+ of the natural images ``(N)`` and their negatives ``(N m)``, anchor by anchor; divided by N m.

    An anchor without a candidate counts with weight 0.
    """
    repeats = negatives.indices.shape[1]
    weights = negatives.found.flatten()

    def contrast(anchors: Tensor, others: Tensor) -> Tensor:
        each = asymmetric_contrast(anchors.repeat_interleave(repeats, dim=0), others, alpha=alpha)
        return (each * weights).mean()

    return with_auxiliary(contrast, natural, negative, cr=cr)
