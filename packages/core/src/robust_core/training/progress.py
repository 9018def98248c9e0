"""How far a run is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

__all__ = ["Progress"]


class Progress:
    """Progress over ``total`` steps; ``quiet`` prints nothing (all processes but the first).

    ``say`` prints the lines. A bar is drawn only beside ``print``: who says lines otherwise may have several
    runs going on at once.
    """

    def __init__(
        self, total: int, start: int, title: str, *, say: Callable[[str], None] = print, quiet: bool = False
    ) -> None:
        self.quiet = quiet
        self._say = say
        self._bar: Any = None
        if say is print and not quiet and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=start, desc=title, unit="step", dynamic_ncols=True)

    def advance(self) -> None:
        """Count one step."""
        if self._bar is not None:
            self._bar.update(1)

    def line(self, text: str) -> None:
        """Print one line (above the bar, if there is one)."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.write(text)
        else:
            self._say(text)
            sys.stdout.flush()

    def close(self) -> None:
        """Put the bar away."""
        if self._bar is not None:
            self._bar.close()
