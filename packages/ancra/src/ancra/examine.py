"""The honest examination of a trained network: the adaptive suite, the sanity table, and what they are written to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ancra.adaptive import (
    FULL,
    QUICK,
    SQUARE_OUTPUTS,
    AttackEffort,
    adaptive_protocol,
    adaptive_runners,
    blocks_of,
)
from ancra.checkpoint import Subject, SubjectConfig, load_source, load_subject
from ancra.config import AncraConfig
from robust_core.config import config_from_dict
from robust_core.data import ImageSet, class_balanced_subset
from robust_core.evaluation import (
    Check,
    Evaluation,
    Examination,
    Examiner,
    Progress,
    Protocol,
    SanityEffort,
    Sizes,
    load_evaluation,
    sanity_table,
    save_checks,
)
from robust_core.evaluation.sanity import adaptive_check
from robust_core.models import Network
from robust_core.reporting import (
    ADAPTIVE,
    examination_figure,
    examination_table,
    sanity_as_table,
    save_figure,
    write_report,
)
from robust_core.run_data import load_data
from robust_core.storage import write_whole
from robust_core.training import RunDirectory

__all__ = ["EXAMINATIONS", "Effort", "examine_network", "examine_run"]

REFERENCES = 5000
"""Training images, class-balanced, among which the nearest are looked for."""


@dataclass(frozen=True)
class Effort:
    """How thorough an examination is; ``sanity_images`` 0: no sanity table."""

    attacks: AttackEffort = FULL
    sizes: Sizes = field(default_factory=Sizes)
    sanity: SanityEffort = field(default_factory=SanityEffort)
    sanity_images: int = 500
    autoattack: bool = True


_SMALL_SANITY = SanityEffort(apgd_steps=20, more_steps=40, more_restarts=2, queries=100, corners=20)
EXAMINATIONS: Mapping[str, Effort] = {
    "full": Effort(),
    "cascade": Effort(sizes=Sizes(alone=0, long=0, precise=0), sanity_images=0),
    "demo": Effort(
        attacks=QUICK,
        sizes=Sizes(cascade=200, alone=0, long=0, precise=0),
        sanity_images=0,
        autoattack=False,
    ),
    "smoke": Effort(
        attacks=replace(QUICK, steps=2, queries=10, hard_label_queries=20, hard_label_images=4),
        sizes=Sizes(cascade=20, alone=8, long=4, precise=4, long_steps=4),
        sanity=replace(_SMALL_SANITY, steps=2, apgd_steps=2, more_steps=4, queries=5, corners=2),
        sanity_images=8,
        autoattack=False,
    ),
}


def examine_network(
    network: Network,
    images: ImageSet,
    folder: Path,
    *,
    effort: Effort,
    eps: float = 8 / 255,
    training_images: ImageSet | None = None,
    sources: Mapping[str, Network] | None = None,
    known: Sequence[Evaluation] = (),
    seed: int = 0,
    batch_size: int = 128,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> tuple[Examination, list[Check]]:
    """Return the adaptive suite's findings and the sanity table of a network in evaluation mode.

    Both go to ``folder/adaptive`` (records, ``adaptive.md``, ``adaptive.png`` and ``.pdf``, ``sanity.json``), member by
    member, so that an examination that was stopped goes on. ``training_images`` and ``sources`` (networks to transfer
    from) make members run that need them; ``known`` evaluations of the same weights spare their members.
    """
    home, sources, references = folder / ADAPTIVE, dict(sources or {}), training_images
    if references is not None and len(references) > REFERENCES:
        references = class_balanced_subset(references, REFERENCES, seed)

    def suite(steps: int) -> Protocol:
        return adaptive_protocol(
            blocks_of(network),
            images.info.num_classes,
            eps=eps,
            effort=replace(effort.attacks, steps=steps),
            sources=sources,
            autoattack=effort.autoattack,
        )

    place: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "device": device}
    place |= {"folder": home, "say": say}
    examiner = Examiner(
        model=network,
        dataset=images,
        suite=suite,
        runners=adaptive_runners(references, sources),
        sizes=effort.sizes,
        known=known,
        without_gradients=(SQUARE_OUTPUTS,),
        progress=progress,
        **place,
    )
    found = examiner.examine(effort.attacks.steps)
    checks = [adaptive_check(found.cascade, "autoattack")]
    if effort.sanity_images:
        checks = sanity_table(
            network,
            images,
            images=effort.sanity_images,
            effort=replace(effort.sanity, eps=eps),
            sources=sources,
            adaptive=found.cascade,
            **place,
        )
    _write(found, checks, home)
    return found, checks


def _write(found: Examination, checks: Sequence[Check], home: Path) -> None:
    """Write tables and figure beside the records."""
    save_checks(home / "sanity.json", checks)
    figure = examination_figure(found)
    for ending in ("png", "pdf"):
        save_figure(figure, home / f"adaptive.{ending}")
    tables = [examination_table(found, "Adaptive suite"), sanity_as_table(checks, "Sanity table")]
    write_whole(home / "adaptive.md", "\n".join(table.markdown() for table in tables))


def examine_run(
    run: Path, sources: Mapping[str, Path], effort: Effort, *, say: Callable[[str], None] = print
) -> tuple[Examination, list[Check]]:
    """Examine the network that a finished run chose, on its own test images; its report then shows the findings.

    ``sources`` are runs on the same data to transfer from, by name. AutoAttack's part in the run's own evaluation is
    taken over. Raises ``UserError`` for a directory without a run, or weights that do not fit.
    """
    subject = _subject(run, say)
    config = config_from_dict(AncraConfig, RunDirectory.open(run).record["config"])
    record = run / "evaluation" / "pgd.json"
    found = examine_network(
        subject.network,
        subject.images,
        run,
        effort=effort,
        eps=config.test_epsilon,
        training_images=load_data(config, say)[0],
        sources={name: load_source(str(path), subject, say=say) for name, path in sources.items()},
        known=[load_evaluation(record.parent, "pgd")] if record.exists() else [],
        seed=config.seed,
        batch_size=config.evaluation_batch_size,
        device=subject.device,
        say=say,
    )
    say(f"report: {write_report(run)}")
    return found


def _subject(run: Path, say: Callable[[str], None]) -> Subject:
    return load_subject(str(run), SubjectConfig(), {}, flag="the run", say=say)
