"""An evaluation on disk while it is under way, so that one that was stopped goes on with the next member."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from robust_core.errors import UserError
from robust_core.evaluation.protocols import UNFINISHED
from robust_core.evaluation.record import Evaluation, load_evaluation

__all__ = ["PARTIAL", "Keeper", "records_in"]

PARTIAL = "-partial"
"""What ends the name of a record that is under way."""


@dataclass(frozen=True)
class Keeper:
    """The record ``name`` in ``folder`` (None: nothing is kept), for ``evaluate(..., known=, keep=)``."""

    folder: Path | None
    name: str

    def known(self, say: Callable[[str], None] = print) -> list[Evaluation]:
        """Return what a stopped evaluation left, or nothing; a damaged record is said and made again."""
        return records_in(self.folder, say, f"{self.name}{PARTIAL}")

    def keep(self, found: Evaluation) -> None:
        """Write the evaluation so far."""
        if self.folder is not None and found.protocol.name.endswith(UNFINISHED):
            found.save(self.folder, f"{self.name}{PARTIAL}")

    def finish(self, found: Evaluation) -> None:
        """Write the whole one and take away what was kept of it on the way."""
        if self.folder is None:
            return
        found.save(self.folder, self.name)
        for ending in ("npz", "json"):
            (self.folder / f"{self.name}{PARTIAL}.{ending}").unlink(missing_ok=True)


def records_in(folder: Path | None, say: Callable[[str], None], pattern: str) -> list[Evaluation]:
    """Return the records in a folder whose names fit, whole or under way; what is damaged is said and left out."""
    found = []
    # by the manifests, which are written last: what a kill left without one is no damage
    for path in sorted(folder.glob(f"{pattern}.json")) if folder is not None else ():
        try:
            found.append(load_evaluation(path.parent, path.stem))
        except UserError:
            say(f"warning: '{path}' or what belongs to it is damaged; its members are run again")
    return found
