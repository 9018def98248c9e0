"""ANCRA's negative contrast inside PART's budget: ``python -m benchmarks.compose.anc_in_part``.

PART decides how far each pixel may move, ANCRA pushes other classes' examples away. PART takes any loss of
natural and adversarial images, so the contrast is one; it is trained, tested and reported as any method.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ancra.attention import Outputs
from ancra.losses import exclusion
from ancra.methods import NegativeChoice, choose_negatives
from part.masks import MaskRule
from part.methods import Part
from robust_core.cli import guarded
from robust_core.config import RunConfig
from robust_core.data import dataset_info
from robust_core.evaluation import protocol
from robust_core.losses import trades_terms
from robust_core.plan import Plan, Session
from robust_core.session import execute
from robust_core.training import Phase, Rate, StepContext, StepResult
from robust_core.training.methods import InnerAttack

__all__ = ["Composition", "ContrastedTrades", "main"]


@dataclass(frozen=True)
class ContrastedTrades:
    """TRADES' loss plus ``zeta`` times ANCRA's contrast with attacked negatives of the batch."""

    num_classes: int
    attack: InnerAttack
    beta: float = 6.0
    zeta: float = 3.0

    def __call__(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, context: StepContext
    ) -> StepResult:
        """Return the loss; passes in the order natural, adversarial, negatives."""
        others = choose_negatives(
            NegativeChoice(),
            images,
            labels,
            context,
            num_classes=self.num_classes,
            eps=self.attack.eps,
            step_size=self.attack.step_size,
            steps=self.attack.steps,
        )
        batches = (images, adversarial, others.images)
        natural, attacked, negative = (context.logits(model, points) for points in batches)
        natural_loss, robust_loss = trades_terms(natural, attacked, labels)
        apart = exclusion(Outputs(natural), Outputs(negative), others.choice, alpha=1.0, cr=0.0)
        loss = natural_loss + self.beta * robust_loss + self.zeta * apart
        figures = {"natural_loss": natural_loss, "robust_loss": robust_loss, "exclusion_loss": apart}
        return StepResult(loss, {name: value.detach() for name, value in figures.items()})


class Composition(Plan[RunConfig]):
    """A run with one phase: PART with the contrasted loss."""

    def phases(self, config: RunConfig, epoch_steps: int) -> list[Phase]:
        """Return the one phase."""
        attack = InnerAttack(
            config.epsilon, config.step_size, config.num_steps, objective="kl", start="normal"
        )
        outer = ContrastedTrades(dataset_info(config.data).num_classes, attack)
        method = Part("PART-T with contrast", attack, outer, MaskRule(), low_eps=7 / 255, refresh="step")
        return [Phase("main", method, config.epochs * epoch_steps, Rate("constant", config.lr))]

    def conclude(self, session: Session[RunConfig]) -> dict[str, Any]:
        """Return the figures under PGD-20."""
        summary = session.evaluate(protocol("pgd-20")).summary()
        session.say(f"natural {summary['natural_accuracy']:.3f}, PGD-20 {summary['robust_accuracy']:.3f}")
        return {"seed": session.config.seed, "summary": summary}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a few steps on embedded images and print what the log says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compose.anc_in_part", description=__doc__)
    parser.add_argument("--run-dir", default="runs/compose/anc-in-part", help="the run")
    parser.add_argument("--overwrite", action="store_true", help="begin anew where there is a run")
    parser.add_argument("--images", type=int, default=256, help="images to train on, once (256)")
    options = parser.parse_args(arguments)
    config = RunConfig(
        model="resnet8-s2",
        train_subset=options.images,
        validation=0,
        test_images=100,
        batch_size=32,
        epochs=1,
        num_steps=3,
        step_size=4 / 255,
        lr=0.05,
        log_interval=1,
    )
    execute(config, Composition(), Path(options.run_dir), overwrite=options.overwrite)
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
