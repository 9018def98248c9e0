"""How each kind of member attacks a batch: the bridge from a protocol's settings to the attacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robust_core import attacks
from robust_core.attacks.autoattack import AUTOATTACK_REMEDY
from robust_core.evaluation.judging import CountingNetwork
from robust_core.randomness import generator_for

__all__ = ["RUNNERS", "AttackCall", "MemberUnavailable", "Runner"]


class MemberUnavailable(Exception):
    """A member cannot run here; the message says what is missing and the remedy."""


@dataclass(frozen=True)
class AttackCall:
    """One batch for one member: what a runner needs to return adversarial images.

    ``network`` is the (counting) frozen view, ``images`` ``(n, C, H, W)`` in [0, 1], ``indices`` the images'
    positions in the full split. Every iterate goes to ``observe(iterate, rows)``, after which ``standing(rows)``
    says which of these images are unbroken; ``flag`` takes warnings.
    """

    network: CountingNetwork
    images: Tensor
    labels: Tensor
    settings: dict[str, Any]
    purpose: str
    seed: int
    indices: Sequence[int]
    observe: Callable[[Tensor, Tensor], None]
    standing: Callable[[Tensor], Tensor]
    flag: Callable[[str], None]

    def generator(self, *position: int) -> torch.Generator:
        """Return the batch's generator (CPU), for attacks that draw more than a start; a member may have several."""
        return generator_for(self.seed, self.purpose, self.indices[0], *position)

    def part(self, rows: Tensor) -> AttackCall:
        """Return the call for some images of the batch, at ``rows`` ``(m,)``."""
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            indices=[self.indices[row] for row in rows.tolist()],
            observe=lambda iterate, inner: self.observe(iterate, rows[inner]),
            standing=lambda inner: self.standing(rows[inner]),
        )

    def starts(self, *position: int) -> Tensor:
        """Return random starts in ball and box, each a function of (seed, member, image, position) alone.

        ``random_start`` of the settings: "uniform" (default), "normal" or False. Drawn on the CPU.
        """
        kind = self.settings.get("random_start", "uniform")
        if kind is False:
            return self.images
        drawn = []
        for image, index in zip(self.images.cpu(), self.indices, strict=True):
            generator = generator_for(self.seed, self.purpose, index, *position)
            drawn.append(
                attacks.draw_start(
                    image[None],
                    eps=self.settings["eps"],
                    kind="uniform" if kind is True else kind,
                    generator=generator,
                    norm=self.settings.get("norm", "linf"),
                )
            )
        return torch.cat(drawn).to(self.images)

    def options(self) -> dict[str, Any]:
        """Return the settings without ``random_start``, for attacks that are given ``starts()``."""
        return {key: value for key, value in self.settings.items() if key != "random_start"}


Runner = Callable[[AttackCall], Tensor]


def _with_start(call: AttackCall) -> dict[str, Any]:
    """The settings with a start per image; with restarts all starts are drawn for the batch."""
    if call.settings.get("restarts", 1) > 1:
        return {**call.settings, "generator": call.generator()}
    return {**call.options(), "start": call.starts()}


def _pgd(call: AttackCall) -> Tensor:
    return attacks.pgd(call.network, call.images, call.labels, observe=call.observe, **_with_start(call))


def _fgsm(call: AttackCall) -> Tensor:
    return attacks.fgsm(call.network, call.images, call.labels, observe=call.observe, **call.settings)


def _mma(call: AttackCall) -> Tensor:
    return attacks.mma(call.network, call.images, call.labels, observe=call.observe, **_with_start(call))


def _apgd(call: AttackCall) -> Tensor:
    return attacks.apgd(call.network, call.images, call.labels, observe=call.observe, **_with_start(call))


def _autoattack(call: AttackCall) -> Tensor:
    """AutoAttack shows no iterates: it returns, for each image, the first one that fooled the network."""
    if not attacks.autoattack_available():
        raise MemberUnavailable(AUTOATTACK_REMEDY)
    found = attacks.autoattack(
        call.network,
        call.images.contiguous(),
        call.labels,
        batch_size=len(call.images),
        generator=call.generator(),
        **call.settings,
    )
    for text in (*(f"skipped: {reason}" for reason in found.skipped), *found.flags):
        call.flag(text)
    return found.images


def _by_queries(attack: Callable[..., Tensor]) -> Runner:
    def run(call: AttackCall) -> Tensor:
        return attack(
            call.network,
            call.images,
            call.labels,
            observe=call.observe,
            generator=call.generator(),
            **call.settings,
        )

    return run


RUNNERS: dict[str, Runner] = {
    "apgd": _apgd,
    "autoattack": _autoattack,
    "fgsm": _fgsm,
    "mma": _mma,
    "pgd": _pgd,
    "random_corners": _by_queries(attacks.random_corners),
    "rays": _by_queries(attacks.rays),
    "square": _by_queries(attacks.square),
}
"""The kinds of members, by name; ``evaluate(..., runners=...)`` adds more for one evaluation."""
