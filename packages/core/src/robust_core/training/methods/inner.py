"""The inner maximisation of adversarial training, with randomness taken from the step's context."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robust_core.attacks.balls import unit
from robust_core.attacks.engine import ascend
from robust_core.attacks.mma import ascend_targets, wrong_classes
from robust_core.attacks.objectives import Objective, cross_entropy, kl_to
from robust_core.attacks.starts import NORMAL_START_SCALE
from robust_core.training.method import StepContext

__all__ = ["InnerAttack"]


@dataclass(frozen=True)
class InnerAttack:
    """How a method finds the adversarial images it trains on.

    ``eps`` and ``step_size`` in pixels of [0, 1]; ``objective`` is ``ce`` or ``kl`` (to the natural prediction);
    ``start`` is ``uniform`` (in +-eps), ``normal`` (0.001 N(0, 1)) or ``none``; ``clip_start`` clips it to [0, 1];
    ``kind`` is ``pgd`` or ``mma`` (minimum margin over ``targets`` classes); ``ramp`` lets eps rise linearly from
    0 over the phase, without which a small network may not begin to learn.
    """

    eps: float
    step_size: float
    steps: int
    objective: str = "ce"
    start: str = "uniform"
    clip_start: bool = True
    norm: str = "linf"
    kind: str = "pgd"
    targets: int = 3
    ramp: bool = False

    def radius(self, context: StepContext) -> float:
        """Return the budget of this step."""
        return self.eps * context.progress if self.ramp else self.eps

    def start_from(self, images: Tensor, context: StepContext) -> Tensor:
        """Return the starting points, noise drawn for the global batch."""
        if self.start == "none":
            return images
        if self.start == "normal":
            return images + NORMAL_START_SCALE * context.normal("start", images)
        if self.norm == "l2":
            share = context.uniform("start length", images[:, :1, :1, :1]) ** (1.0 / images[0].numel())
            noise = share * unit(context.normal("start", images))
        else:
            noise = 2.0 * context.uniform("start", images) - 1.0
        points = images + self.radius(context) * noise
        return points.clamp(0.0, 1.0) if self.clip_start else points

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        context: StepContext,
        *,
        eps: Tensor | float | None = None,
        natural_logits: Tensor | None = None,
    ) -> Tensor:
        """Return adversarial images ``(n, 3, H, W)``, computed on the context's frozen view.

        ``eps`` replaces the radius (one per image or per pixel). ``natural_logits`` of the same view are used
        where the attack needs them, instead of another forward pass.
        """
        budget = self.radius(context) if eps is None else eps
        start = self.start_from(images, context)
        if self.kind == "mma":
            logits = context.view(images) if natural_logits is None else natural_logits
            return ascend_targets(
                context.view,
                images,
                labels,
                start=start,
                eps=budget,
                step_size=self.step_size,
                steps=self.steps,
                target_classes=wrong_classes(logits, labels, min(self.targets, logits.shape[1] - 1)),
                norm=self.norm,
            ).images
        if self.objective == "kl":
            objective: Objective = kl_to(context.view(images) if natural_logits is None else natural_logits)
        else:
            objective = cross_entropy
        return ascend(
            context.view,
            images,
            labels,
            start=start,
            eps=budget,
            step_size=self.step_size,
            steps=self.steps,
            objective=objective,
            norm=self.norm,
        )
