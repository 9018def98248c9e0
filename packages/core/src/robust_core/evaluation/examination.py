"""A suite of attacks carried out as honest evaluation asks: in a cascade, each alone, in float64, and for longer.

Each part is saved member by member, so that an examination of hours goes on where it was stopped.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from robust_core.data.types import ImageSet
from robust_core.errors import UserError
from robust_core.evaluation.keeping import Keeper, records_in
from robust_core.evaluation.loop import evaluate
from robust_core.evaluation.members import Runner
from robust_core.evaluation.protocols import Protocol
from robust_core.evaluation.record import Bools, Evaluation, load_evaluation
from robust_core.evaluation.work import Progress
from robust_core.storage import write_json

__all__ = ["Examination", "Examiner", "Sizes", "load_examination"]

GAIN = 0.01
"""Five times the steps may lower the worst case by one point; where they lower it by more, the steps are doubled."""
WITHOUT_GRADIENTS = ("autoattack", "square", "rays", "random_corners")
NAMES = ("cascade", "alone", "long", "float32", "float64")
MANIFEST = "examination.json"
"""Written last: it names the parts that belong together."""


@dataclass(frozen=True)
class Sizes:
    """On how many of the first images each part runs (0: not at all), and for how many steps the longer one."""

    cascade: int = 1000
    alone: int = 200
    long: int = 200
    precise: int = 100
    long_steps: int = 500


@dataclass(frozen=True)
class Examination:
    """What a suite found.

    ``cascade``: the worst case, members one after the other on what stands. ``alone``: every member on its own.
    ``long``: the cascade on fewer images with more steps. ``float32`` and ``float64``: the members with gradients, on
    the same few images in either precision. Parts that were left out are None.
    """

    cascade: Evaluation
    alone: Evaluation | None = None
    long: Evaluation | None = None
    float32: Evaluation | None = None
    float64: Evaluation | None = None

    def worst_case(self) -> Bools:
        """Return, per image of the cascade, whether no member of any float32 part broke it ``(N,)``."""
        worst = self.cascade.worst_case()
        for part in (self.alone, self.long, self.float32):
            if part is not None:
                count = min(len(worst), len(part.labels))
                worst[:count] &= part.worst_case()[:count]
        return worst

    def claims(self) -> bool:
        """Whether a worst case may be claimed: every member ran, AutoAttack among them."""
        autoattack = any(member.kind == "autoattack" for member in self.cascade.protocol.members)
        return autoattack and bool(self.cascade.summary()["complete"])

    def gain(self) -> float | None:
        """Return by how much more steps lower the worst case of the same images (a share, may be negative)."""
        if self.long is None:
            return None
        count = min(len(self.cascade.labels), len(self.long.labels))
        shorter, longer = self.cascade.worst_case()[:count], self.long.worst_case()[:count]
        return float(shorter.mean() - longer.mean())

    def precision_gap(self) -> float | None:
        """Return by how much the two precisions differ in their worst case (a share, not negative)."""
        if self.float32 is None or self.float64 is None:
            return None
        return abs(float(self.float32.worst_case().mean() - self.float64.worst_case().mean()))


@dataclass
class Examiner:
    """Carries out the parts of a suite on one network.

    ``suite(steps)`` gives the protocol with so many steps of its gradient attacks; ``folder`` keeps the parts (None:
    nothing is kept); ``known`` are evaluations from which equal members are taken over; ``without_gradients`` names
    the kinds among ``runners`` that need no gradients, to which a precision means nothing.
    """

    model: nn.Module
    dataset: ImageSet
    suite: Callable[[int], Protocol]
    runners: Mapping[str, Runner]
    sizes: Sizes = field(default_factory=Sizes)
    seed: int = 0
    batch_size: int = 128
    device: torch.device | str | None = None
    folder: Path | None = None
    known: Sequence[Evaluation] = ()
    without_gradients: Sequence[str] = ()
    progress: Progress | None = None
    say: Callable[[str], None] = print

    def examine(self, steps: int = 100) -> Examination:
        """Return all parts; ``steps`` are doubled as long as the longer run gains more than a point."""
        sizes, long = self.sizes, self.sizes.long_steps
        while True:
            names = {name: f"{name}-{steps}" for name in NAMES}
            found = Examination(
                cascade=self._part(names["cascade"], self.suite(steps), sizes.cascade),
                alone=self._part(names["alone"], self.suite(steps), sizes.alone, cascade=False)
                if sizes.alone
                else None,
                long=self._part(names["long"], self.suite(max(long, steps)), sizes.long)
                if sizes.long
                else None,
                float32=self._precise(names["float32"], steps),
                float64=self._precise(names["float64"], steps, double=True),
            )
            gain = found.gain()
            if gain is None or gain <= GAIN or steps >= long:
                self._finish(found, names)
                return found
            self.say(
                f"{long} steps instead of {steps} lower the worst case by {100 * gain:.1f} points, more than one: the "
                f"suite is run again with {min(2 * steps, long)} steps"
            )
            steps = min(2 * steps, long)

    def _finish(self, found: Examination, names: Mapping[str, str]) -> None:
        """Say which parts belong together."""
        if self.folder is not None:
            made = {name: names[name] for name in NAMES if getattr(found, name) is not None}
            write_json(self.folder / MANIFEST, {"parts": made})

    def _precise(self, name: str, steps: int, *, double: bool = False) -> Evaluation | None:
        """Carry out the members with gradients in one precision."""
        if not self.sizes.precise:
            return None
        return self._part(name, self._with_gradients(steps), self.sizes.precise, double=double)

    def _with_gradients(self, steps: int) -> Protocol:
        whole = self.suite(steps)
        without = (*WITHOUT_GRADIENTS, *self.without_gradients)
        members = tuple(member for member in whole.members if member.kind not in without)
        return Protocol(f"{whole.name} with gradients", members)

    def _part(
        self, name: str, protocol: Protocol, images: int, *, cascade: bool = True, double: bool = False
    ) -> Evaluation:
        """Carry out one part, or what is left of it."""
        model = copy.deepcopy(self.model).double() if double else self.model
        keeper = Keeper(self.folder, name)
        result = evaluate(
            model,
            self.dataset,
            protocol,
            limit=min(images, self.sizes.cascade),
            seed=self.seed,
            batch_size=self.batch_size,
            device=self.device,
            runners=self.runners,
            progress=self.progress,
            cascade=cascade,
            known=[*self.known, *records_in(self.folder, self.say, "*-*")],
            keep=keeper.keep,
        )
        keeper.finish(result)
        return result


def load_examination(folder: Path, weights: str = "") -> Examination | None:
    """Return the examination that an :class:`Examiner` left in a folder; None if none was finished there.

    ``weights``: also None for a network with other weights (``Evaluation.weights``; "": whatever it was).

    Raises:
        UserError: if its manifest or a part is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        names = dict(json.loads(path.read_text(encoding="utf8"))["parts"])
        found = Examination(**{name: load_evaluation(folder, str(file)) for name, file in names.items()})
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(
            f"'{path}' or a part of it is damaged ({error}); examine the network again."
        ) from None
    return found if weights in ("", found.cascade.weights) else None
