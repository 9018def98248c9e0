"""BAT (Sun et al. 2022): two examples near the decision boundary per image, both pulled towards the uniform prediction.

The searches run a fixed number of passes over the whole batch and remember when each image left, instead of shrinking
the batch as published: the same images come out, and a GPU never waits for the number of those that are left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gdro_at.attacks import TrainingAttack
from robust_core.attacks.balls import make_ball
from robust_core.attacks.engine import Classifier, gradient_of, natural_layout
from robust_core.attacks.objectives import kl_to
from robust_core.data import Batch
from robust_core.losses import accuracy, kl_divergence
from robust_core.training.method import Method, StepContext, StepResult

__all__ = [
    "BAT",
    "OFFICIAL_NOISE",
    "BoundarySearch",
    "BoundaryTerms",
    "bat_terms",
    "first_adversarial",
    "last_clean",
    "published_order",
]

OFFICIAL_NOISE = 0.001
"""Standard deviation of the published start, whatever eps is."""


class BoundarySearch(NamedTuple):
    """What a search found, in the order of the batch.

    ``images`` ``(n, C, H, W)``; ``exits`` int64 ``(n,)``: the iteration at which an image left, -1 if it never did
    (``steps``: only the examination after the last step found it wrong); ``values`` ``(steps, n)``: the KL before each
    step of the images that were still in the search, else 0.
    """

    images: Tensor
    exits: Tensor
    values: Tensor


def last_clean(
    network: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    start: Tensor,
    natural_logits: Tensor,
    eps: float,
    step_size: float,
    steps: int,
    official: bool = False,
) -> BoundarySearch:
    """Return for each image the last iterate that is still classified right, on a path that raises the KL.

    An image that is wrong at the start gives the clean image back; one that stays to the end is examined once more.
    ``official``: the first gives its noisy start back, and the second its last iterate, right or wrong (golden README,
    ``bat``; fair_baselines, section 8).
    """
    fallback = start if official else images
    return _search(
        network,
        images,
        labels,
        start,
        natural_logits,
        eps,
        step_size,
        steps,
        0,
        fallback,
        examine=not official,
    )


def first_adversarial(
    network: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    start: Tensor,
    natural_logits: Tensor,
    eps: float,
    step_size: float,
    steps: int,
    tau: int = 1,
    official: bool = False,
) -> BoundarySearch:
    """Return for each image the iterate at which it was classified wrong for the ``tau + 1``-th time, else the last.

    The wrong iterates need not follow each other. The examination after the last step tells ``exits`` only; there is
    none if ``official``.
    """
    return _search(
        network, images, labels, start, natural_logits, eps, step_size, steps, tau, None, examine=not official
    )


def _search(
    network: Classifier,
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    natural_logits: Tensor,
    eps: float,
    step_size: float,
    steps: int,
    tau: int,
    fallback: Tensor | None,
    *,
    examine: bool,
) -> BoundarySearch:
    """Walk along the KL; an image that leaves gives its iterate or, with ``fallback`` for the first, the one before."""
    images = natural_layout(network, images.detach())
    ball, objective = make_ball(images, eps), kl_to(natural_logits)
    iterate = natural_layout(network, start.detach())
    before = fallback
    found = torch.zeros_like(iterate)
    exits = torch.full_like(labels, -1)
    pardons = torch.full_like(labels, tau)
    values = []
    for step in range(steps + examine):
        if step < steps:
            gradient, logits, costs = gradient_of(network, iterate, labels, objective)
            values.append(torch.where(exits < 0, costs, 0))
        else:
            with torch.no_grad():
                logits = network(iterate)
        wrong = (logits.argmax(dim=1) != labels) & (exits < 0)
        leaves = wrong & (pardons == 0)
        found = torch.where(_wide(leaves, found), iterate if before is None else before, found)
        exits = torch.where(leaves, step, exits)
        pardons = pardons - (wrong & ~leaves).to(pardons.dtype)
        if step < steps:
            before = None if before is None else iterate
            iterate = ball.step(iterate, gradient, step_size)
    found = torch.where(_wide(exits < 0, found), iterate, found)
    return BoundarySearch(found, exits, torch.stack(values) if values else found.new_zeros((0, len(labels))))


def _wide(rows: Tensor, images: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (images.dim() - 1))


def published_order(exits: Tensor) -> Tensor:
    """Return the images in the order of the published rows, int64 ``(n,)``: of leaving, then those that stayed."""
    return torch.where(exits < 0, torch.iinfo(exits.dtype).max, exits).argsort(stable=True)


class BoundaryTerms(NamedTuple):
    """The three parts of the loss, one value per row ``(n,)`` each; ``robust`` without its factor beta.

    ``clean``: cross-entropy of the last clean example; ``robust``: ``KL(p(x) || p(x_a))``; ``uniform``: KL of both
    examples' predictions to the uniform one.
    """

    clean: Tensor
    robust: Tensor
    uniform: Tensor


def bat_terms(
    last_logits: Tensor, first_logits: Tensor, clean_logits: Tensor, last_labels: Tensor
) -> BoundaryTerms:
    """Return the parts of BAT's loss from logits ``(n, K)`` (fair_baselines, section 8), with gradient through all.

    ``last_labels`` ``(n,)`` are those of the rows of ``last_logits``; rows of ``first_logits`` and ``clean_logits``
    belong together. The uniform part is an entropy bonus, ``log K - H(p)``.
    """
    return BoundaryTerms(
        clean=F.cross_entropy(last_logits, last_labels, reduction="none"),
        robust=kl_divergence(clean_logits, first_logits),
        uniform=_to_uniform(last_logits) + _to_uniform(first_logits),
    )


def _to_uniform(logits: Tensor) -> Tensor:
    log_p = F.log_softmax(logits, dim=1)
    return (log_p.exp() * log_p).sum(dim=1) + math.log(logits.shape[1])


@dataclass
class BAT(Method):
    """BAT in the loop; it knows neither groups nor classes apart from the label.

    ``uniform_term`` off leaves out the pull to the uniform prediction, which with two classes is a confidence penalty
    and nothing else. ``official``: the published searches and rows, which are shuffled (that changes rounding alone),
    and the start ``x + 0.001 N(0, 1)``, clipped to [0, 1] but not to the ball.
    """

    name: str
    attack: TrainingAttack
    beta: float = 6.0
    tau: int = 1
    uniform_term: bool = True
    official: bool = False

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> StepResult:
        """Return the loss; passes in the published order last clean, first adversarial, clean."""
        last, first = self._find(batch, context)
        rows_last = rows_first = torch.arange(len(batch), device=batch.labels.device)
        if self.official:
            shuffled = context.uniform("shuffle", batch.labels.to(torch.float32)).argsort()
            rows_last, rows_first = published_order(last.exits), published_order(first.exits)[shuffled]
        last_logits = context.logits(model, last.images[rows_last])
        first_logits = context.logits(model, first.images[rows_first])
        clean_logits = context.logits(model, batch.images[rows_first])
        terms = bat_terms(last_logits, first_logits, clean_logits, batch.labels[rows_last])
        clean, robust, uniform = (part.mean() for part in terms)
        loss = clean + self.beta * robust
        labels = batch.labels[rows_first]
        return StepResult(
            loss + uniform if self.uniform_term else loss,
            {
                "last_clean_loss": clean.detach(),
                "robust_loss": robust.detach(),
                "uniform_loss": uniform.detach(),
                "natural_accuracy": accuracy(clean_logits, labels),
                "adversarial_accuracy": accuracy(first_logits, labels),
                "crossed": (first.exits >= 0).float().mean(),
            },
        )

    def _find(self, batch: Batch, context: StepContext) -> tuple[BoundarySearch, BoundarySearch]:
        """Return both searches on the context's view, each from its own start."""
        images = batch.images
        attack = self.attack.published(OFFICIAL_NOISE) if self.official else self.attack
        with torch.no_grad():
            natural = context.view(images)
        # the start is clipped to the box in both forms
        starts = [
            attack.begin(images, context.normal(purpose, images)).clamp(0.0, 1.0)
            for purpose in ("last clean", "first adversarial")
        ]
        common: dict[str, Any] = {
            "natural_logits": natural,
            "eps": attack.eps,
            "step_size": attack.step,
            "steps": attack.steps,
            "official": self.official,
        }
        last = last_clean(context.view, images, batch.labels, start=starts[0], **common)
        first = first_adversarial(context.view, images, batch.labels, start=starts[1], tau=self.tau, **common)
        return last, first
