"""Protocols: named lists of attacks with all their settings, so that a figure says how it was obtained."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from robust_core.errors import UserError, unknown_name

__all__ = ["PROTOCOLS", "UNFINISHED", "Member", "Protocol", "as_protocol", "check_settings", "protocol"]

PROTOCOLS = ("natural", "pgd-20", "pgd", "autoattack")
UNFINISHED = " (unfinished)"
"""Behind the name of a protocol whose last members have not run yet."""
# What the evaluation gives to an attack itself, besides the network, images and labels.
_GIVEN = ("batch_size", "generator", "log", "observe", "start")


@dataclass(frozen=True)
class Member:
    """One attack of a protocol: ``kind`` says which, ``settings`` are its keyword arguments (JSON values).

    ``images``: it attacks only the first so many images (None: all). ``required``: a missing optional package
    is an error; otherwise the member is reported as not run, with the remedy.
    """

    name: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    images: int | None = None
    required: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the member as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Protocol:
    """A named list of members; the worst case is taken over all of them."""

    name: str
    members: tuple[Member, ...] = ()

    def __post_init__(self) -> None:
        names = [member.name for member in self.members]
        if len(set(names)) < len(names):
            raise UserError(f"Protocol '{self.name}' has members {names}: each name may occur once.")

    def as_json(self) -> dict[str, Any]:
        """Return the protocol as JSON values."""
        return {"name": self.name, "members": [member.as_json() for member in self.members]}

    @staticmethod
    def from_json(record: dict[str, Any]) -> Protocol:
        """Return the protocol that :meth:`as_json` described."""
        return Protocol(record["name"], tuple(Member(**member) for member in record["members"]))


def protocol(
    name: str,
    *,
    eps: float = 8 / 255,
    step_size: float = 2 / 255,
    autoattack_images: int | None = 0,
    required: bool = False,
) -> Protocol:
    """Return a standard protocol under an L-inf budget in pixels' units ([0, 1]).

    ``natural``: no attack. ``pgd-20``, ``pgd`` (PGD-20 and PGD-40): cross-entropy, uniform random start, as
    published (last iterate) beside every iterate; ``pgd`` also with AutoAttack standard on the first
    ``autoattack_images`` images (0: none, None: all). ``autoattack``: AutoAttack standard (0 and
    None: on all images). ``required``: without its package AutoAttack is an error, not a row "not run".
    """
    budget: dict[str, Any] = {"eps": eps, "norm": "linf"}

    def pgd_member(steps: int) -> Member:
        return Member(f"pgd-{steps}", "pgd", {**budget, "step_size": step_size, "steps": steps})

    autoattack = Member("autoattack", "autoattack", {**budget, "version": "standard"}, required=required)
    if name == "natural":
        return Protocol(name)
    if name == "pgd-20":
        return Protocol(name, (pgd_member(20),))
    if name == "pgd":
        extra = () if autoattack_images == 0 else (replace(autoattack, images=autoattack_images),)
        return Protocol(name, (pgd_member(20), pgd_member(40), *extra))
    if name == "autoattack":
        return Protocol(name, (replace(autoattack, images=autoattack_images or None),))
    raise unknown_name("protocol", name, PROTOCOLS)


def as_protocol(given: object) -> Protocol:
    """Return a protocol, or the standard one of a name; ``UserError`` for anything else."""
    if isinstance(given, Protocol):
        return given
    if isinstance(given, str):
        return protocol(given)
    raise UserError(
        f"protocol is {given!r}, expected a Protocol or a name: give one of {', '.join(PROTOCOLS)}."
    )


def check_settings(member: Member, attack: Callable[..., Any] | None) -> None:
    """Refuse settings without a number ``eps``, and those that ``attack`` does not take or lacks."""
    settings: Mapping[str, Any] = member.settings
    names: set[str] = {"eps"}
    needed: set[str] = {"eps"}
    if attack is not None:
        options = [p for p in inspect.signature(attack).parameters.values() if p.kind is p.KEYWORD_ONLY]
        names |= {option.name for option in options if option.name not in _GIVEN}
        needed |= {option.name for option in options if option.default is option.empty}
        for name in settings:
            if name not in names:
                known = unknown_name(f"setting of member '{member.name}' ({member.kind})", str(name), names)
                raise known
    missing = sorted(needed - set(settings))
    if missing:
        raise UserError(
            f"Member '{member.name}' ({member.kind}) has no setting '{missing[0]}', only {sorted(settings)}: "
            f"give settings={{'{missing[0]}': ...}}."
        )
    eps = settings["eps"]
    if isinstance(eps, bool) or not isinstance(eps, numbers.Real):
        raise UserError(f"Member '{member.name}' has eps={eps!r}, expected a number such as 8/255.")
