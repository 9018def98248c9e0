"""UDR (Bui et al. 2022): ``uni``, ``unitrades``, ``unimart``, training on a soft ball instead of a hard one.

Pixels beyond eps are pulled back by a share lambda alpha/tau of their excess (1: a projection); lambda is learned so
that the perturbation is eps on average.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robust_core.attacks.balls import make_ball
from robust_core.attacks.engine import Classifier, gradient_of, natural_layout
from robust_core.attacks.objectives import Objective, cross_entropy, kl_to
from robust_core.data import Batch
from robust_core.errors import UserError, unknown_name
from robust_core.losses import mart
from robust_core.training.distributed import sum_figures
from robust_core.training.method import Method, StepContext, StepResult
from robust_core.training.methods import AtLoss, MartLoss, TradesLoss

__all__ = ["KINDS", "UDR", "learned_lamda", "pulled_back", "soft_attack"]

KINDS = ("uni", "unitrades", "unimart")
_MART_BETA = 6.0  # of the attack, whatever the loss has; published
_LEARN_EVERY = 10


def pulled_back(delta: Tensor, images: Tensor, *, eps: float, share: float) -> Tensor:
    """Return perturbations whose excess over eps has shrunk by ``share`` (lambda alpha / tau), within valid pixels.

    ``d - share (d - sign(d) eps)`` where ``|d| > eps``, then clipped to ``[-x, 1 - x]``. A share of 1 projects.
    """
    excess = delta - delta.clamp(-eps, eps)
    return _limited(delta - share * excess, images)


def _limited(delta: Tensor, images: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(delta, -images), 1 - images)


def soft_attack(
    network: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    start: Tensor,
    kind: str,
    eps: float,
    alpha: float,
    tau: float,
    lamda: float,
    steps: int,
) -> Tensor:
    """Return perturbations ``(n, C, H, W)`` after ``steps`` steps of size ``alpha`` from the perturbation ``start``.

    ``kind`` is one of ``KINDS``; the last two move in two halves, the first of which (``eps / steps`` along the KL, or
    ``alpha`` along the cross-entropy) stays in the hard ball (golden README, ``wrm``). The result may exceed eps.

    Raises:
        UserError: for an unknown kind.
    """
    if kind not in KINDS:
        raise unknown_name("kind", kind, KINDS)
    images = natural_layout(network, images.detach())
    first, second = _objectives(network, images, kind)
    first_step = eps / steps if kind == "unitrades" else alpha
    ball = make_ball(images, eps)
    delta = _limited(natural_layout(network, start.detach()), images)
    for _ in range(steps):
        if first is not None:
            gradient, _, _ = gradient_of(network, images + delta, labels, first)
            delta = ball.step(images + delta, gradient, first_step) - images
        gradient, _, _ = gradient_of(network, images + delta, labels, second)
        delta = pulled_back(delta + alpha * gradient.sign(), images, eps=eps, share=lamda * alpha / tau)
    return delta


def _objectives(network: Classifier, images: Tensor, kind: str) -> tuple[Objective | None, Objective]:
    """Return what the two halves of a step raise, up to positive factors: only signs count."""
    if kind == "uni":
        return None, cross_entropy
    with torch.no_grad():
        natural = network(images)
    if kind == "unitrades":  # the natural term of TRADES does not depend on the perturbation
        return kl_to(natural), kl_to(natural)
    return cross_entropy, lambda logits, labels: mart(natural, logits, labels, beta=_MART_BETA)


def learned_lamda(lamda: float, *, rate: float, eps: float, mean_size: float) -> float:
    """Return ``lambda - rate (eps - mean |d|)``: it grows, and the ball hardens, where perturbations exceed eps."""
    return lamda - rate * (eps - mean_size)


@dataclass
class UDR(Method):
    """UDR in the loop: training on the examples of a soft attack, with lambda learned every ten batches.

    ``kind`` is ``uni`` (cross-entropy of the adversarial images), ``unitrades`` or ``unimart``. ``alpha`` (None:
    ``eps / 4``), ``tau`` (None: alpha), ``lamda`` (the first one) and ``lr_tau`` (rate of lambda; 0 keeps it) are the
    published flags, which the published code never uses. The start is uniform in ``+-start`` (None: eps; golden README:
    0.0001). It knows neither groups nor classes apart from the label (fair_baselines, section 9); evaluate it
    at the hard radius. ``forwards`` as in TRADES. There is no official form: these types train nothing there.
    """

    name: str
    kind: str
    eps: float
    steps: int = 10
    alpha: float | None = None
    tau: float | None = None
    lamda: float = 1.0
    lr_tau: float = 0.02
    start: float | None = None
    beta: float = 6.0
    forwards: int = 1
    learned: float = field(default=0.0, init=False, repr=False)
    window: int = field(default=0, init=False, repr=False)
    totals: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("kind", self.kind, KINDS)
        if self.tau is not None and not self.tau > 0:
            raise UserError(
                f"tau is {self.tau}; give a number above 0, or leave it out for the step size alpha."
            )
        self.learned = self.lamda

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> StepResult:
        """Return the loss of the batch and its soft adversarial images."""
        self._learn(context)
        images, alpha = batch.images, self.eps / 4 if self.alpha is None else self.alpha
        radius = self.eps if self.start is None else self.start
        with torch.no_grad():
            delta = soft_attack(
                context.view,
                images,
                batch.labels,
                start=radius * (2.0 * context.uniform("start", images) - 1.0),
                kind=self.kind,
                eps=self.eps,
                alpha=alpha,
                tau=alpha if self.tau is None else self.tau,
                lamda=self.learned,
                steps=self.steps,
            )
        sizes = delta.abs().flatten(1).mean(dim=1)
        seen = torch.stack([sizes.sum(), torch.full_like(sizes, 1.0).sum()]).float()
        seen = seen / context.processes.copies  # the sum over the processes counts each image once
        self.totals = seen if self.totals is None else self.totals + seen
        found = self._outer()(model, images, images + delta, batch.labels, context)
        figures = {"lamda": torch.full_like(sizes[0], self.learned), "perturbation": sizes.mean()}
        return StepResult(found.loss, {**found.metrics, **figures})

    def _outer(self) -> AtLoss | TradesLoss | MartLoss:
        if self.kind == "uni":
            return AtLoss()
        return TradesLoss(self.beta, self.forwards) if self.kind == "unitrades" else MartLoss(self.beta)

    def _learn(self, context: StepContext) -> None:
        """Move lambda when ten batches of all processes are over."""
        window = context.phase_step // _LEARN_EVERY
        if window == self.window or self.totals is None:
            return
        total = sum_figures({"sizes": self.totals[0], "images": self.totals[1]}, context.processes)
        mean_size = (total["sizes"] / total["images"]).item()
        self.learned = learned_lamda(self.learned, rate=self.lr_tau, eps=self.eps, mean_size=mean_size)
        self.window, self.totals = window, None

    def state_dict(self) -> dict[str, Any]:
        """Return lambda, and the sizes of the perturbations since it last moved."""
        return {"learned": self.learned, "window": self.window, "totals": self.totals}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.learned, self.window, self.totals = state["learned"], state["window"], state["totals"]
