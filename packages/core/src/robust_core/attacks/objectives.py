"""What an attack maximises: functions of (logits, labels) with one value per image.

``logits`` are ``(N, K)``, ``labels`` int64 ``(N,)``; the value ``(N,)`` grows as the attack succeeds. An
objective that carries data of each image (a reference, a target class) is a :class:`PerImage`, so that the
data follow their images when some leave the batch; any object with such a ``select`` may take its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_core.errors import UserError, unknown_name

__all__ = [
    "LOSSES",
    "Negated",
    "Objective",
    "PerImage",
    "best_wrong_logit",
    "cross_entropy",
    "dlr",
    "dlr_towards",
    "kl_to",
    "margin",
    "margin_towards",
    "minimum_margin",
    "named",
    "select",
    "targeted_dlr",
]

Objective = Callable[[Tensor, Tensor], Tensor]
LOSSES = ("ce", "dlr", "kl", "margin")


@dataclass(frozen=True)
class PerImage:
    """An objective ``function(logits, labels, *data)`` whose ``data`` have one row per image."""

    function: Callable[..., Tensor]
    data: tuple[Tensor, ...]

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the values ``(N,)``."""
        return self.function(logits, labels, *self.data)

    def select(self, rows: Tensor) -> PerImage:
        """Return the objective for some images of the batch."""
        return PerImage(self.function, tuple(entry[rows] for entry in self.data))


@dataclass(frozen=True)
class Negated:
    """The opposite of an objective, which a targeted attack maximises."""

    objective: Objective

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the values ``(N,)``."""
        return -self.objective(logits, labels)

    def select(self, rows: Tensor) -> Negated:
        """Return the objective for some images of the batch."""
        return Negated(select(self.objective, rows))


def select(objective: Objective, rows: Tensor) -> Objective:
    """Return ``objective`` for the images at ``rows``; one without data of its own is returned as it is."""
    chooser: Any = getattr(objective, "select", None)
    return chooser(rows) if callable(chooser) else objective


def named(loss: str | Objective, *, targeted: bool, reference: Callable[[], Tensor]) -> Objective:
    """Return what is maximised, from a name of ``LOSSES`` or a function, which is returned as it is.

    With ``targeted`` its opposite, for labels that are the classes to reach. ``reference`` gives the natural
    logits and is called for ``kl`` alone.
    """
    if callable(loss):
        objective: Objective = loss
    elif loss == "kl":
        if targeted:
            raise UserError("loss='kl' has no target: use 'ce', 'margin' or 'dlr' with targeted=True.")
        return kl_to(reference())
    elif loss in LOSSES:
        plain: dict[str, Objective] = {"ce": cross_entropy, "dlr": dlr, "margin": margin}
        objective = plain[loss]
    else:
        raise unknown_name("loss", str(loss), LOSSES)
    return Negated(objective) if targeted else objective


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each image."""
    return F.cross_entropy(logits, labels, reduction="none")


def best_wrong_logit(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the largest logit ``(N,)`` of a class other than the label."""
    return logits.scatter(1, labels[:, None], -torch.inf).max(dim=1).values


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``max_{k != y} z_k - z_y``: positive where misclassified (Carlini and Wagner 2017)."""
    return best_wrong_logit(logits, labels) - _logit(logits, labels)


def margin_towards(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return ``z_t - z_y`` for a target class of each image."""
    return _logit(logits, targets) - _logit(logits, labels)


def minimum_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return ``-max(z_y - z_t + 50, 0)`` for a target class of each image (Gao et al. 2022)."""
    return -(_logit(logits, labels) - _logit(logits, targets) + 50.0).clamp_min(0.0)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the difference of logits ratio (Croce and Hein 2020, eq. 6): needs three classes.

    ``-(z_y - max_{k != y} z_k) / (z_(1) - z_(3))``, logits sorted descending; shift and scale change nothing.
    """
    _need_classes(logits, 3, "dlr")
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the targeted DLR (Croce and Hein 2020, eq. 7): needs four classes.

    ``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)``.
    """
    _need_classes(logits, 4, "targeted dlr")
    top = logits.topk(4, dim=1).values
    return margin_towards(logits, labels, targets) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)


def dlr_towards(targets: Tensor) -> PerImage:
    """Return the targeted DLR towards one class ``(N,)`` per image."""
    return PerImage(targeted_dlr, (targets,))


def kl_to(reference_logits: Tensor) -> PerImage:
    """Return ``KL(p || p(x))`` with the prediction ``p`` of ``reference_logits`` ``(N, K)`` (TRADES)."""
    log_reference = F.log_softmax(reference_logits.detach(), dim=1)
    return PerImage(_kl, (log_reference.exp(), log_reference))


def _kl(logits: Tensor, labels: Tensor, reference: Tensor, log_reference: Tensor) -> Tensor:
    del labels
    if logits.shape != reference.shape:
        raise UserError(
            f"The reference logits have shape {tuple(reference.shape)}, the model's {tuple(logits.shape)}: "
            "give the natural logits of the same model and images."
        )
    return (reference * (log_reference - F.log_softmax(logits, dim=1))).sum(dim=1)


def _logit(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _need_classes(logits: Tensor, count: int, name: str) -> None:
    if logits.shape[1] < count:
        raise UserError(
            f"The {name} objective needs at least {count} classes, the network has {logits.shape[1]}: "
            "use the margin (loss='margin') instead."
        )
