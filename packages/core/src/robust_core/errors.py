"""What a user is told: of a mistake one sentence, never a traceback; of a doubt one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["RESTORE_OR_ANEW", "UserError", "UserNote", "unknown_name"]

RESTORE_OR_ANEW = "restore it, or start the run anew in another --run-dir."
"""What remains to be done about a damaged file of a run; ends a sentence."""


class UserError(ValueError):
    """A mistake that the user can mend; the message names the value, what was expected and the remedy.

    Scripts print the message and leave with exit code 2; library users may catch it as a ``ValueError``.
    """


class UserNote(UserWarning):
    """What a user should know of a run that goes on; scripts print it as one line, libraries warn of it."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that is not registered, with the nearest known name.

    >>> print(unknown_name("dataset", "cifra10", ["cifar10", "svhn"]))
    Unknown dataset 'cifra10'; did you mean 'cifar10'? Known: cifar10, svhn.
    """
    names = sorted(known)
    lowered = {known_name.lower(): known_name for known_name in names}
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    hint = f"; did you mean '{lowered[near[0]]}'?" if near else "."
    return UserError(f"Unknown {kind} '{name}'{hint} Known: {', '.join(names)}.")
