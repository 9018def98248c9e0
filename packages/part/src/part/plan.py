"""PART's part of a session: phases, files under the published names, the published final tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from part.config import PartConfig
from part.mask_attack import PGD_IN_MASKS, mask_protocol, mask_runner
from part.phases import build_phases, mask_rule
from robust_core.evaluation import Evaluation, Member, Protocol, protocol
from robust_core.models import FrozenView
from robust_core.plan import Plan, Session
from robust_core.randomness import generator_for
from robust_core.storage import write_tensors
from robust_core.training import Phase

__all__ = ["PartPlan", "final_protocol"]

SUFFIX = {"at": "", "trades": "_t", "mart": "_m"}
TITLES = {"pgd-20": "PGD", "mma": "MMA", "autoattack": "AA", PGD_IN_MASKS: "PGD within the masks"}


def final_protocol(config: PartConfig) -> Protocol:
    """Return the attacks of the paper's tables, all from uniform starts: PGD-20, MMA (three targets), AutoAttack.

    AutoAttack on the first ``--aa-images`` (below 0: all); ``--final-tests pgd-20`` leaves PGD-20 alone.
    """
    eps, step_size = config.test_epsilon, config.step_size
    members = protocol("pgd-20", eps=eps, step_size=step_size).members
    if config.final_tests == "all":
        margin = {"eps": eps, "norm": "linf", "step_size": step_size, "steps": 20, "targets": 3}
        members += (Member("mma", "mma", margin),)
        if config.aa_images:
            members += protocol("autoattack", eps=eps, autoattack_images=max(config.aa_images, 0)).members
    return Protocol("part", members)


class PartPlan(Plan[PartConfig]):
    """What PART adds to a session."""

    def phases(self, config: PartConfig, epoch_steps: int) -> list[Phase]:
        """Return natural steps, warm-up and main phase."""
        return build_phases(config, epoch_steps)

    def export(self, config: PartConfig, folder: Path) -> Callable[[Phase, int, nn.Module], None]:
        """Return what writes a plain state dict under the official name every ``--save-freq`` epochs."""

        def write(phase: Phase, epoch: int, model: nn.Module) -> None:
            if epoch % config.save_freq or phase.name == "natural":
                return
            if phase.name == "warm-up":
                name = f"pre_part{SUFFIX[config.family]}_epoch{epoch}.pth"
            else:
                name = f"part_epoch{epoch}.pth" if config.family == "at" else f"model-epoch{epoch}.pth"
            write_tensors(folder / name, model.state_dict())

        return write

    def published_files(self, settings: Mapping[str, Any]) -> Sequence[str]:
        """Return the patterns of the state dicts that ``export`` writes."""
        del settings
        return ("pre_part*_epoch*.pth", "part_epoch*.pth", "model-epoch*.pth")

    def conclude(self, session: Session[PartConfig]) -> dict[str, Any]:
        """Test as published (PGD-20, MMA, AutoAttack) and within the masks, print the lines, write the gallery."""
        config = session.config
        attacks = final_protocol(config)
        evaluation = session.evaluate(attacks)
        lines = published_lines(evaluation)
        if config.makes_masks:
            lines += published_lines(self._within_masks(session))
        for line in lines:
            session.say(line)
        session.save_gallery(attacks, self._masks(session))
        return {"method": config.method, "seed": config.seed, "summary": evaluation.summary()}

    def _within_masks(self, session: Session[PartConfig]) -> Evaluation:
        """Return PGD-20 within the run's masks, as a record of its own: its failures join no worst case."""
        config = session.config
        attacks = mask_protocol(eps=config.epsilon, low_eps=config.low_epsilon, step_size=config.step_size)
        return session.evaluate(attacks, runners={PGD_IN_MASKS: mask_runner(mask_rule(config))})

    def _masks(self, session: Session[PartConfig]) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Return what draws the masks that the run trained with, where it had any."""
        config = session.config
        # the uniform control has one budget for all of an image's pixels
        if not config.makes_masks or config.mask_control == "uniform":
            return None
        rule = mask_rule(config)
        view = FrozenView(session.model)

        def masks(images: Tensor, labels: Tensor) -> Tensor:
            draw = torch.rand(rule.shape(images), generator=generator_for(config.seed, "gallery-masks"))
            return rule.masks(view, images, labels, draw=draw.to(images.device))[0]

        return masks


def published_lines(evaluation: Evaluation) -> list[str]:
    """Return the final report as the official scripts print it: last iterates, counts and percentages."""
    natural = evaluation.natural
    lines = []
    for member in evaluation.protocol.members:
        title = TITLES.get(member.name, member.name)
        lines.append(f"{title}===")
        if member.name not in evaluation.last:
            lines.append(f"not run: {evaluation.runs[member.name].remedy}")
            continue
        chosen = evaluation.attacked[member.name]
        right, robust, total = (
            int(natural[chosen].sum()),
            int(evaluation.last[member.name].sum()),
            int(chosen.sum()),
        )
        lines.append(
            f"Test: Accuracy: {right}/{total} ({100 * right / total:.2f}%), "
            f"Robust Accuracy: {robust}/{total} ({100 * robust / total:.2f}%)"
        )
    return lines
