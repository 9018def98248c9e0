"""Signs that a robust accuracy is not what it seems: gradients that lead nowhere, attacks that are too weak.

After Athalye et al. 2018 and Carlini et al. 2019 (obfuscated gradients) and Tramer et al. 2020 (adaptive attacks).
One check per sign, each with its figures and a verdict; none proves a network robust.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robust_core.attacks.engine import gradient_of
from robust_core.attacks.objectives import cross_entropy
from robust_core.data.types import ImageSet
from robust_core.errors import UserError
from robust_core.evaluation.helped import transfer_runner
from robust_core.evaluation.judging import weights_digest
from robust_core.evaluation.keeping import Keeper, records_in
from robust_core.evaluation.loop import evaluate
from robust_core.evaluation.protocols import Member, Protocol
from robust_core.evaluation.record import Bools, Evaluation
from robust_core.models import frozen
from robust_core.storage import write_json

__all__ = ["Check", "SanityEffort", "adaptive_check", "load_checks", "sanity_table", "save_checks"]

SHARE, GAIN, PRECISION = 0.01, 0.01, 0.005
LARGE = 64 / 255


@dataclass(frozen=True)
class Check:
    """One line: what was looked at on how many images, the figures, whether they are a bad sign (None: not checked)."""

    name: str
    fails_when: str
    figures: str
    failed: bool | None
    images: int = 0

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        return {True: "FAILS", False: "passes", None: "not checked"}[self.failed]


@dataclass(frozen=True)
class SanityEffort:
    """What the checks may spend. The published attack is PGD with ``steps`` of ``step_size`` from a uniform start."""

    eps: float = 8 / 255
    step_size: float = 0.007
    steps: int = 40
    apgd_steps: int = 100
    more_steps: int = 500
    more_restarts: int = 5
    queries: int = 5000
    corners: int = 1000
    curve: tuple[float, ...] = (1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255, LARGE)


def sanity_table(
    model: nn.Module,
    dataset: ImageSet,
    *,
    images: int = 500,
    effort: SanityEffort | None = None,
    sources: Mapping[str, nn.Module] | None = None,
    adaptive: Evaluation | None = None,
    standard: str = "autoattack",
    batch_size: int = 128,
    seed: int = 0,
    device: torch.device | str | None = None,
    folder: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[Check]:
    """Return the checks of a network in evaluation mode on the first ``images`` images (fewer than 500 prove little).

    ``sources``: networks to transfer from. ``adaptive``: an evaluation of the same network under attacks that know
    it, of which ``standard`` names the member that does not. ``folder`` keeps the attacks' records (None: nothing is
    kept), so that a table that was stopped goes on.
    """
    work = _Checks(
        model=model,
        dataset=dataset,
        images=images,
        effort=effort or SanityEffort(),
        sources=dict(sources or {}),
        batch_size=batch_size,
        seed=seed,
        device=device,
        folder=folder,
        known=records_in(folder, say, "sanity-*"),
    )
    count = min(images, len(dataset))
    return [*(replace(check, images=count) for check in work.checks()), adaptive_check(adaptive, standard)]


@dataclass
class _Checks:
    model: nn.Module
    dataset: ImageSet
    images: int
    effort: SanityEffort
    sources: dict[str, nn.Module]
    batch_size: int
    seed: int
    device: torch.device | str | None
    folder: Path | None
    known: list[Evaluation]
    made: int = 0

    def checks(self) -> list[Check]:
        """Return all lines but the adaptive one."""
        effort = self.effort
        apgd = {"eps": effort.eps, "steps": effort.apgd_steps}
        pgd = Member("pgd", "pgd", {"eps": effort.eps, "steps": effort.steps, "step_size": effort.step_size})
        fgsm = Member("fgsm", "fgsm", {"eps": effort.eps})
        first = Member("apgd-ce", "apgd", {**apgd, "loss": "ce"})
        by_gradient = (pgd, fgsm, first, Member("apgd-margin", "apgd", {**apgd, "loss": "margin"}))
        published = self._run(pgd, fgsm)
        return [
            self._natural_against_pgd(published),
            self._one_step(published),
            self._without_gradients(by_gradient),
            self._more_effort(first),
            *self._curve(),
            self._gradients(),
            self._precision(pgd, published),
        ]

    def _run(self, *members: Member, cascade: bool = False, model: nn.Module | None = None) -> Evaluation:
        self.made += 1
        keeper = Keeper(self.folder, f"sanity-{self.made}")
        found = evaluate(
            model or self.model,
            self.dataset,
            Protocol("sanity", members),
            limit=self.images,
            batch_size=self.batch_size,
            seed=self.seed,
            device=self.device,
            runners={"transfer": transfer_runner(self.sources)},
            cascade=cascade,
            known=self.known,
            keep=keeper.keep,
        )
        keeper.finish(found)
        self.known.append(found)
        return found

    def _natural_against_pgd(self, published: Evaluation) -> Check:
        natural, attacked = published.natural.mean(), published.last["pgd"].mean()
        return Check(
            "natural against PGD",
            f"PGD-{self.effort.steps} accuracy as published exceeds natural accuracy",
            f"natural {_percent(natural)}, PGD-{self.effort.steps} {_percent(attacked)}",
            bool(attacked > natural),
        )

    def _one_step(self, published: Evaluation) -> Check:
        share = (published.natural & ~published.robust["fgsm"] & published.robust["pgd"]).mean()
        return Check(
            "one step against many",
            f"one step breaks what PGD-{self.effort.steps} does not, on more than {_percent(SHARE)}",
            _percent(share),
            bool(share > SHARE),
        )

    def _without_gradients(self, by_gradient: Sequence[Member]) -> Check:
        effort = self.effort
        others = [
            Member("square", "square", {"eps": effort.eps, "queries": effort.queries}),
            Member("corners", "random_corners", {"eps": effort.eps, "draws": effort.corners}),
            *(
                Member(
                    f"transfer {name}",
                    "transfer",
                    {
                        "eps": effort.eps,
                        "steps": effort.apgd_steps,
                        "source": name,
                        "source_weights": weights_digest(source),
                    },
                )
                for name, source in self.sources.items()
            ),
        ]
        # each on all that gradients leave, not only on what the one before it left
        alone = {
            other.name: _broken(self._run(*by_gradient, other, cascade=True), other.name) for other in others
        }
        shares = {name: broken.mean() for name, broken in alone.items()}
        return Check(
            "no gradients against gradients",
            f"Square, random corners or transfer break what gradients do not, on more than {_percent(SHARE)}",
            ", ".join(f"{name} {_percent(share)}" for name, share in shares.items())
            + ("" if self.sources else "; transfer: no network was given"),
            bool(max(shares.values()) > SHARE),
        )

    def _more_effort(self, first: Member) -> Check:
        effort = self.effort
        steps, restarts = effort.more_steps, effort.more_restarts
        more = {
            f"{effort.apgd_steps} to {steps} steps": {**first.settings, "steps": steps},
            f"1 to {restarts} restarts": {**first.settings, "restarts": restarts},
        }
        gains = {
            name: _broken(self._run(first, Member(name, "apgd", settings), cascade=True), name).mean()
            for name, settings in more.items()
        }
        return Check(
            "budget of the attack",
            "more steps or restarts gain more than one point",
            ", ".join(f"{name}: {_percent(gain)}" for name, gain in gains.items()),
            bool(max(gains.values()) > GAIN),
        )

    def _curve(self) -> list[Check]:
        steps = self.effort.apgd_steps
        members = [
            Member(f"{eps * 255:g}/255", "apgd", {"eps": eps, "steps": steps, "loss": "margin"})
            for eps in sorted({*self.effort.curve, LARGE})
        ]
        found = self._run(*members)
        values = [float(found.natural.mean()), *(float(found.robust[m.name].mean()) for m in members)]
        names = ["0", *(member.name for member in members)]
        large = values[names.index(f"{LARGE * 255:g}/255")]
        return [
            Check("large eps", "accuracy at 64/255 is above 1%", _percent(large), large > SHARE),
            Check(
                "eps curve",
                "accuracy rises anywhere with eps",
                ", ".join(f"{name}: {_percent(value)}" for name, value in zip(names, values, strict=True)),
                any(later > earlier for earlier, later in pairwise(values)),
            ),
        ]

    def _gradients(self) -> Check:
        view: Any = frozen(self.model)
        dataset = self.dataset
        zero = []
        place = next((tensor.device for tensor in view.buffers()), torch.device("cpu"))
        for first in range(0, min(self.images, len(dataset)), self.batch_size):
            rows = slice(first, min(first + self.batch_size, self.images))
            images, labels = dataset.pixels(rows).to(place), dataset.labels[rows].to(place)
            gradient, _, _ = gradient_of(view, images, labels, cross_entropy)
            zero.append(gradient.flatten(1).abs().amax(dim=1) == 0)
        share = float(torch.cat(zero).float().mean())
        return Check(
            "gradients",
            f"input gradients are exactly zero on more than {_percent(SHARE)} of the images",
            _percent(share),
            share > SHARE,
        )

    def _precision(self, pgd: Member, published: Evaluation) -> Check:
        exact = self._run(pgd, model=copy.deepcopy(self.model).double())
        single, double = published.robust["pgd"].mean(), exact.robust["pgd"].mean()
        return Check(
            "precision",
            f"float32 and float64 differ by more than {_percent(PRECISION)}",
            f"float32 {_percent(single)}, float64 {_percent(double)}",
            bool(abs(single - double) > PRECISION),
        )


def save_checks(path: Path, checks: Sequence[Check]) -> None:
    """Write the table as JSON."""
    write_json(path, {"checks": [asdict(check) for check in checks]})


def load_checks(path: Path) -> list[Check]:
    """Return the table that :func:`save_checks` wrote.

    Raises:
        UserError: if the file is missing or damaged.
    """
    try:
        return [Check(**check) for check in json.loads(path.read_text(encoding="utf8"))["checks"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); examine the network again.") from error


def adaptive_check(adaptive: Evaluation | None, standard: str) -> Check:
    """Return the line that compares attacks that know the network with the ``standard`` one that does not."""
    name, sign = (
        "adaptive against standard",
        "AutoAttack stands more than one point above the adaptive worst case",
    )
    if adaptive is None or standard not in adaptive.robust:
        return Check(name, sign, "no adaptive evaluation with AutoAttack was made", None)
    images = adaptive.attacked[standard] | ~adaptive.natural
    alone, worst = adaptive.robust[standard][images].mean(), adaptive.worst_case()[images].mean()
    figures = f"AutoAttack {_percent(alone)}, adaptive worst case {_percent(worst)}"
    return Check(name, sign, figures, bool(alone - worst > GAIN), int(images.sum()))


def _broken(found: Evaluation, member: str) -> Bools:
    """Return what a member broke of the images that stood before it."""
    broken: Bools = found.attacked[member] & ~found.robust[member]
    return broken


def _percent(share: float | np.floating[Any]) -> str:
    return f"{100 * float(share):.1f}%"
