"""``test_white_attack.py``: natural, PGD-40, FGSM, C&W and AutoAttack on the final logits of a trained network.

Every attack runs on the frozen view and is judged by the unmodified ``model(images)`` at every iterate; the
published lines count the last one.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ancra.checkpoint import Subject, SubjectConfig, load_sources, load_subject, training_images
from ancra.examine import EXAMINATIONS, examine_network
from ancra.inspection import InspectionScript, write_log
from ancra.published import published_cw
from robust_core.config import expect, option
from robust_core.errors import UserError, unknown_name
from robust_core.evaluation import AttackCall, Evaluation, Keeper, Member, Protocol, evaluate, load_evaluation
from robust_core.evaluation.work import TAKEN_OVER
from robust_core.models import Network
from robust_core.reporting import (
    ADAPTIVE,
    accuracy_table,
    examination_table,
    sanity_as_table,
    write_report,
)

__all__ = ["RECORD", "WhiteAttackConfig", "main", "published_lines", "white_attack", "white_protocol"]

ATTACKS = ("natural", "pgd", "fgsm", "cw", "aa")
CW_STEPS = 20
RECORD = "white-attack"
PUBLISHED_FLAGS = ("--test-batch-size", "--epsilon", "--num-steps", "--step-size", "--random", "--ckpt-url")

EPILOG = """
Budgets may be written as fractions: --epsilon 8/255. Network, attention and dataset come from the run's
config.json; a bare state dict needs them as flags. AutoAttack needs the extra 'eval'; without it the others run.
What was stopped goes on with the attack that it had reached.
"""


@dataclass(frozen=True, kw_only=True)
class WhiteAttackConfig(SubjectConfig):
    """Settings of the white-box evaluation; the defaults are the published ones."""

    ckpt_url: str = option(
        "./checkpoint/baseline/Mart_128_resnet18_cifar100",
        "run directory, or state dict; results go beside it",
        flags=("--run-dir", "--model-dir"),
        group="attacks",
    )
    test_batch_size: int = option(200, "images per batch; the published C&W depends on it", group="attacks")
    epsilon: float = option(8 / 255, "budget of all attacks", kind="fraction", group="attacks")
    num_steps: int = option(40, "steps of PGD", group="attacks")
    step_size: float = option(0.007, "step of PGD and C&W", kind="fraction", group="attacks")
    random: bool = option(True, "random start of PGD and FGSM (C&W: always)", group="attacks")
    attacks: str = option(",".join(ATTACKS), "which to run, with commas between", group="attacks")
    aa_images: int = option(
        0,
        "AutoAttack on the first N images (0: all; of a run: as there, if it asks for any)",
        group="attacks",
    )

    adaptive: bool = option(
        False,
        "also attack knowing the network, and look for signs of robustness that is none (long)",
        group="adaptive",
    )
    adaptive_images: int = option(
        0, "the adaptive suite on the first N images (0: as many as the --effort has)", group="adaptive"
    )
    effort: str = option(
        "full",
        "how thorough that is: full, or short to try it (demo, smoke)",
        choices=("full", "demo", "smoke"),
        group="adaptive",
    )
    transfer_from: str = option(
        "", "runs on the same data whose networks it transfers from, with commas between", group="adaptive"
    )

    @property
    def chosen(self) -> tuple[str, ...]:
        """The attacks to run, in the published order."""
        words = {word.strip() for word in self.attacks.split(",") if word.strip()}
        return tuple(name for name in ATTACKS if name in words)

    def validate(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            UserError: naming the flag, its value and what is expected.
        """
        super().validate()
        for word in filter(None, (part.strip() for part in self.attacks.split(","))):
            if word not in ATTACKS:
                raise unknown_name("attack", word, ATTACKS)
        expect(bool(self.chosen), "attacks", repr(self.attacks), f"some of {','.join(ATTACKS)}")
        for name in ("test_batch_size", "num_steps"):
            expect(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("aa_images", "adaptive_images"):
            expect(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("epsilon", "step_size"):
            expect(0.0 <= getattr(self, name) <= 1.0, name, getattr(self, name), "0 to 1, e.g. 8/255")


def white_protocol(config: WhiteAttackConfig) -> Protocol:
    """Return the attacks that are asked for, with the published settings."""
    budget = {"eps": config.epsilon}
    start = {"random_start": "uniform" if config.random else False}
    cw = {**budget, "step_size": config.step_size, "steps": CW_STEPS}
    pgd = {**budget, "step_size": config.step_size, "steps": config.num_steps, **start}
    members = {
        "natural": (),
        "pgd": (Member(f"pgd-{config.num_steps}", "pgd", pgd),),
        # published: a uniform start, then one step of the whole budget
        "fgsm": (Member("fgsm", "pgd", {**budget, "step_size": config.epsilon, "steps": 1, **start}),),
        "cw": (
            # of another batch size it is another attack
            Member("cw-batch-sum", "published_cw", {**cw, "batch_size": config.test_batch_size}),
            Member("cw", "pgd", {**cw, "loss": "margin"}),
        ),
        "aa": (
            Member(
                "autoattack",
                "autoattack",
                {**budget, "norm": "linf", "version": "standard"},
                images=config.aa_images or None,
            ),
        ),
    }
    return Protocol(RECORD, tuple(member for name in config.chosen for member in members[name]))


def white_attack(subject: Subject, config: WhiteAttackConfig) -> tuple[Evaluation, list[str]]:
    """Return the evaluation of a network under :func:`white_protocol`, and what AutoAttack's package logged.

    Its record lies in the subject's folder, while it is under way too: what was stopped goes on.
    """
    keeper = Keeper(subject.folder / "evaluation", RECORD)
    known = [*_autoattack_of_the_run(subject, config), *keeper.known()]
    with _autoattack_log() as said:
        evaluation = evaluate(
            subject.network,
            subject.images,
            white_protocol(config),
            batch_size=config.test_batch_size,
            seed=config.seed,
            device=subject.device,
            progress=_progress(),
            runners={"published_cw": _published_cw},
            known=known,
            keep=keeper.keep,
        )
    keeper.finish(evaluation)
    if "autoattack" in evaluation.runs and TAKEN_OVER in evaluation.runs["autoattack"].flags:
        said.append(TAKEN_OVER)
        print(f"autoattack: {TAKEN_OVER}")
    return evaluation, said


def _autoattack_of_the_run(subject: Subject, config: WhiteAttackConfig) -> list[Evaluation]:
    """Return the run's own evaluation if AutoAttack was part of it, which takes longer than all else together."""
    if "aa" not in config.chosen or not (subject.folder / "evaluation" / "pgd.json").exists():
        return []
    try:
        found = load_evaluation(subject.folder / "evaluation", "pgd")
    except UserError as error:
        print(f"warning: {error}")
        return []
    return [found] if "autoattack" in found.robust else []


def published_lines(evaluation: Evaluation) -> list[str]:
    """Return the published four lines of the attacks that were asked for: shares right at the last iterate."""

    def share(member: str) -> str:
        run = evaluation.runs[member]
        if not run.ran:
            return f"not run: {run.remedy}"
        return f"{evaluation.last[member][evaluation.attacked[member]].mean():.4f}"

    names = [member.name for member in evaluation.protocol.members]
    pgd = next((name for name in names if name.startswith("pgd-")), None)
    first = f"natural acc: {evaluation.natural.mean():.4f}"
    lines = [first if pgd is None else f"{first}, {pgd.replace('-', '')} robust acc: {share(pgd)}"]
    told = {"fgsm": "fgsm robust acc", "cw-batch-sum": "cw robust_acc", "autoattack": "Autoattack robust_acc"}
    return lines + [f"{words}: {share(name)}" for name, words in told.items() if name in names]


def run(config: WhiteAttackConfig, given: Mapping[str, Any]) -> None:
    """Attack, print the published lines and our table, write logs and the record."""
    subject = load_subject(config.ckpt_url, config, given, flag="--ckpt-url")
    if "aa_images" not in given and type(asked := subject.run.get("aa_images")) is int:
        config = replace(config, aa_images=max(asked, 0))  # below 0 a run of another package asks for all
    # before hours of attacks: a place that is not there is said at once
    sources = load_sources(config.transfer_from, subject) if config.adaptive else {}
    evaluation, said = white_attack(subject, config)
    lines = published_lines(evaluation)
    title = f"{subject.name}: {subject.settings['model']}, {subject.images.info.name}, {subject.weights}"
    for line in lines:
        print(line)
    print()
    print(accuracy_table(evaluation.summary(), title).text())
    write_log(subject.folder / "test.log", config, lines, subject.found)
    if "aa" in config.chosen:
        write_log(subject.folder / "autoattack.log", config, [*said, lines[-1]], subject.found)
    print(f"record: {subject.folder / 'evaluation' / RECORD}.json")
    if config.adaptive:
        _adaptive(subject, config, given, evaluation, sources)


def _adaptive(
    subject: Subject,
    config: WhiteAttackConfig,
    given: Mapping[str, Any],
    evaluation: Evaluation,
    sources: Mapping[str, Network],
) -> None:
    """Examine the network by attacks that know it, and print what they found."""
    effort = EXAMINATIONS[config.effort]
    count = min(config.adaptive_images or effort.sizes.cascade, len(subject.images))
    found, checks = examine_network(
        subject.network,
        subject.images,
        subject.folder,
        effort=replace(effort, sizes=replace(effort.sizes, cascade=count)),
        eps=config.epsilon,
        training_images=training_images(subject, config, given),
        sources=sources,
        known=[evaluation],
        seed=config.seed,
        batch_size=config.test_batch_size,
        device=subject.device,
        progress=_progress(),
    )
    print()
    print(examination_table(found, "Adaptive suite").text())
    print()
    print(sanity_as_table(checks, "Sanity table").text())
    print(f"adaptive suite: {subject.folder / ADAPTIVE}")
    if subject.run:
        print(f"report: {write_report(subject.folder)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``test_white_attack.py``; returns the exit code."""
    return InspectionScript(
        name="test_white_attack.py",
        description="Attack a trained network: natural, PGD-40, FGSM, C&W, AutoAttack.",
        epilog=EPILOG,
        kind=WhiteAttackConfig,
        run=run,
        published=PUBLISHED_FLAGS,
        idle=_idle,
        again="the same command goes on with the attack that it had reached",
    )(arguments)


def _idle(config: WhiteAttackConfig) -> dict[str, str]:
    about = () if config.adaptive else ("transfer_from", "effort", "adaptive_images")
    return dict.fromkeys(about, "it is about --adaptive")


def _published_cw(call: AttackCall) -> Tensor:
    options = call.options()
    del options["batch_size"]  # that of the evaluation, by which the member is told apart
    return published_cw(
        call.network, call.images, call.labels, start=call.starts(), observe=call.observe, **options
    )


def _progress(seconds: float = 30.0) -> Callable[[str, int, int], None]:
    """Return what says how far each member is, at its end and now and then."""
    last = time.monotonic()

    def tell(member: str, done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > seconds:
            last = time.monotonic()
            print(f"{member}: {done:,} of {total:,} images", flush=True)

    return tell


@contextlib.contextmanager
def _autoattack_log() -> Iterator[list[str]]:
    """Collect what the package of AutoAttack logs."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, collector = logging.getLogger("auto-attack"), Collector()
    logger.addHandler(collector)
    try:
        yield lines
    finally:
        logger.removeHandler(collector)
