"""What the four evaluation scripts have in common: flags from a dataclass, warnings, logs, an exit code."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from robust_core.cli import Parser, add_flags, guarded, normalise_flags
from robust_core.config import idle_warnings
from robust_core.errors import UserError
from robust_core.storage import write_whole

__all__ = ["InspectionScript", "made_folder", "write_log"]


class Checked(Protocol):
    """A dataclass of settings (``robust_core.config.option``) that refuses what cannot work."""

    def validate(self) -> None:
        """Raise ``UserError`` for a setting that cannot work."""
        ...


Config = TypeVar("Config", bound=Checked)


@dataclass(frozen=True)
class InspectionScript(Generic[Config]):
    """A script that looks at what was trained.

    ``run(config, given)`` does it; ``given`` are the settings that the user gave. ``published`` are the paper's
    flags, which may be abbreviated; ``idle`` says of settings without effect why they have none,
    always or for a given configuration; ``again`` how one goes on that was interrupted.
    """

    name: str
    description: str
    epilog: str
    kind: type[Config]
    run: Callable[[Config, Mapping[str, Any]], None]
    published: Sequence[str]
    idle: Mapping[str, str] | Callable[[Config], Mapping[str, str]] = field(default_factory=dict)
    again: str = "the same command begins anew"

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        """Run with these command-line arguments (default: the process's own); return the exit code."""
        given = self.parse(sys.argv[1:] if arguments is None else arguments)

        def body() -> None:
            config = self.kind(**given)
            idle = self.idle(config) if callable(self.idle) else self.idle
            for line in idle_warnings({name: (False, why) for name, why in idle.items()}, given):
                print(line)
            config.validate()
            self.run(config, given)

        return guarded(body, self.again)

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Return the given settings by name."""
        parser = Parser(prog=self.name, description=self.description, epilog=self.epilog)
        add_flags(parser, self.kind)
        known = {flag for action in parser._actions for flag in action.option_strings}
        return vars(parser.parse_args(normalise_flags(arguments, self.published, known)))


def made_folder(name: str) -> Path:
    """Return the folder that ``--out`` names, made if need be; ``UserError`` where none can be."""
    path = Path(name).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out names '{path}', where no folder can be made ({error.strerror}); choose another."
        ) from None
    return path


def write_log(
    path: Path,
    config: Any,
    lines: Iterable[str],
    found: Mapping[str, Any] | None = None,
    *,
    append: bool = False,
) -> None:
    """Write a log as the published ones are: all settings, then the lines, each with the time.

    ``found`` are settings that came from a run instead. The file is replaced, or with ``append`` added to.

    Raises:
        UserError: if the file cannot be written.
    """
    stamp = time.strftime("[%Y/%m/%d %H:%M:%S]")
    settings = "  ".join(f"{name}={value}" for name, value in {**asdict(config), **(found or {})}.items())
    before = path.read_text(encoding="utf8") if append and path.is_file() else ""
    write_whole(path, before + "".join(f"{stamp} - {line}\n" for line in (settings, *lines)))
