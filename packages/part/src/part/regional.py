"""The proof of concept of PART's Figure 1: one quadrant of every image at 6/255, the other three at 12/255.

Which quadrant has the small budget changes both accuracies, so pixels differ in worth. Published (ResNet-18,
CIFAR-10, 80 epochs): bottom right 76.77 natural / 46.75 PGD-20, upper left 78.00 / 47.69.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from part.config import PartConfig, resolve_as
from part.phases import build_phases, inner_attack, outer_loss
from robust_core.cli import Parser, add_flags, guarded, normalise_flags
from robust_core.config import option
from robust_core.data import Batch
from robust_core.errors import UserError
from robust_core.evaluation import load_evaluation, protocol, wilson
from robust_core.plan import Beginning, Plan, Session
from robust_core.reporting import MethodResult, Table, comparison_figure, interval_cell, save_figure
from robust_core.session import execute, resume
from robust_core.storage import write_whole
from robust_core.training import Phase, RunDirectory, StepContext, StepResult
from robust_core.training.methods import Adversarial

__all__ = ["PLACEMENTS", "Regional", "RegionalConfig", "main", "quadrant_budget"]

PLACEMENTS = ("bottom-right", "upper-left")
WITHOUT_EFFECT = ("aa_images", "save_freq", "final_tests")
"""Settings of PART's scripts that have no flag here: PGD-20 is the only test, and no state dicts are written."""
PUBLISHED = {"bottom-right": (76.77, 46.75), "upper-left": (78.00, 47.69)}


@dataclass(frozen=True, kw_only=True)
class RegionalConfig(PartConfig):
    """AT with a small budget in one quadrant; the warm-up has the large budget everywhere."""

    method: str = option("at", "what is trained", choices=("at",), group="method")
    epsilon: float = option(12 / 255, "budget of three quadrants", kind="fraction", group="attack")
    low_epsilon: float = option(6 / 255, "budget of one quadrant", kind="fraction", group="method")
    placement: str = option(
        "bottom-right", "quadrant of the small budget", choices=PLACEMENTS, group="method"
    )

    def validate(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            UserError: naming the flag, its value and what is expected.
        """
        super().validate()
        if not self.main_steps and self.warm_up == self.epochs:
            raise UserError(
                f"--warm-up {self.warm_up} leaves nothing for the two budgets; lower it below --epochs {self.epochs}."
            )

    @property
    def has_small_budget(self) -> bool:
        """Whether ``low_epsilon`` is used: always."""
        return True


def quadrant_budget(size: tuple[int, int], placement: str, *, eps: float, low_eps: float) -> Tensor:
    """Return the budget per pixel ``(1, 1, H, W)``: ``low_eps`` in one quadrant, ``eps`` in the others."""
    height, width = size
    budget = torch.full((1, 1, height, width), eps)
    if placement == "upper-left":
        budget[..., : height // 2, : width // 2] = low_eps
    else:
        budget[..., height // 2 :, width // 2 :] = low_eps
    return budget


@dataclass
class Regional(Adversarial):
    """AT whose budget depends on the place in the (cropped and flipped) image."""

    placement: str = "bottom-right"
    low_eps: float = 6 / 255

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> StepResult:
        """Return the outer loss of the batch and its adversarial images."""
        size = (batch.images.shape[2], batch.images.shape[3])
        radius = self.attack.radius(context)
        budget = quadrant_budget(size, self.placement, eps=radius, low_eps=min(self.low_eps, radius))
        with torch.no_grad():
            adversarial = self.attack(batch.images, batch.labels, context, eps=budget.to(batch.images.device))
        return self.outer(model, batch.images, adversarial, batch.labels, context)


class RegionalPlan(Plan[RegionalConfig]):
    """What the proof of concept adds to a session."""

    def phases(self, config: RegionalConfig, epoch_steps: int) -> list[Phase]:
        """Return PART's schedule with the regional budget in the main phase."""
        phases = build_phases(config, epoch_steps)
        attack, outer = inner_attack(config, warm_up=False), outer_loss(config)
        method = Regional("regional AT", attack, outer, config.placement, config.low_epsilon)
        return [*phases[:-1], replace(phases[-1], method=method)]

    def conclude(self, session: Session[RegionalConfig]) -> dict[str, Any]:
        """Evaluate under PGD-20 at the published 8/255."""
        attacks = protocol("pgd-20", eps=session.config.test_epsilon, step_size=session.config.step_size)
        evaluation = session.evaluate(attacks)
        session.save_gallery(attacks)
        return {"placement": session.config.placement, "summary": evaluation.summary()}


def run_both(config: RegionalConfig, folder: Path, *, overwrite: bool = False) -> Table:
    """Train both placements from one shared beginning; writes table.md and comparison.png into ``folder``.

    Runs that lie there are continued, or taken as they are; ``overwrite`` begins them anew.
    """
    plan: Plan[RegionalConfig] = RegionalPlan()
    donor: Path | None = None
    if config.natural_steps or config.warm_up_steps or config.warm_up:
        donor = _carry_out(config, Beginning(plan, -1), folder / "beginning", None, overwrite).path
    rows, results = [], []
    for placement in PLACEMENTS:
        run = _carry_out(replace(config, placement=placement), plan, folder / placement, donor, overwrite)
        evaluation = load_evaluation(run.path / "evaluation", "pgd-20")
        natural, robust = evaluation.natural, evaluation.last["pgd-20"]
        shown = [wilson(int(bits.sum()), len(bits)) for bits in (natural, robust)]
        cells = [interval_cell(interval) for interval in shown]
        comparable = config.scale == "paper"
        published = [f"{value:.2f}" if comparable else "–" for value in PUBLISHED[placement]]
        rows.append((f"{placement} quadrant", *cells, *published))
        natural_then, robust_then = (value / 100 for value in PUBLISHED[placement])
        results.append(
            MethodResult(
                placement,
                shown[0],
                shown[1],
                published_natural=natural_then if comparable else None,
                published_robust=robust_then if comparable else None,
            )
        )
    table = Table(
        ("small budget in", "natural", "PGD-20", "published natural", "published PGD-20"),
        tuple(rows),
        title=f"One quadrant at {config.low_epsilon * 255:g}/255, three at {config.epsilon * 255:g}/255",
        notes=(
            f"{config.data}, {config.model}, {len(natural)} test images, seed {config.seed}, PGD-20 at "
            f"{config.test_epsilon * 255:g}/255 (last iterate), percent with 95% Wilson intervals over images. "
            "Published: ResNet-18, CIFAR-10, the intervals unknown.",
        ),
    )
    write_whole(folder / "table.md", table.markdown())
    save_figure(comparison_figure(results, robust_label="PGD-20 accuracy (%)"), folder / "comparison.png")
    return table


def _carry_out(
    config: RegionalConfig, plan: Plan[RegionalConfig], path: Path, donor: Path | None, overwrite: bool
) -> RunDirectory:
    """Take a run as it is if it is finished, continue it if it is not, begin it if it is not there."""
    config = replace(config, run_dir=str(path))
    if overwrite or not (path / "config.json").exists():
        return execute(config, plan, path, overwrite=overwrite, fork_from=donor)
    if RunDirectory.open(path).record["config"] == config.to_dict():
        return resume(config, plan, path)
    raise UserError(
        f"'{path}' holds a run with other settings; choose another --run-dir, or start anew with --overwrite."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``regional_epsilon.py``; returns the exit code."""
    parser = Parser(prog="regional_epsilon.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--overwrite", action="store_true", help="start anew where runs lie already")
    add_flags(parser, RegionalConfig, hidden=WITHOUT_EFFECT)
    given = vars(parser.parse_args(normalise_flags(sys.argv[1:] if arguments is None else arguments)))

    overwrite = given.pop("overwrite")

    def body() -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("regional_epsilon.py trains in one process; start it without torchrun.")
        if "placement" in given:
            print("warning: --placement has no effect here: both placements are trained")
        scale = given.get("scale", "paper")
        folder = Path(given.pop("run_dir", f"./checkpoint/regional-{scale}"))
        config, notes = resolve_as(RegionalConfig, {"validation": 0, **given}, method="at")
        for note in notes:
            print(note)
        print(run_both(config, folder, overwrite=overwrite).text())
        print(f"table and figure: {folder}")

    return guarded(body, "the same command goes on where it stopped")


if __name__ == "__main__":
    sys.exit(main())
