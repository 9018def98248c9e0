"""What every training script does: read the flags, begin a run or continue one, end with an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from robust_core.cli import Parser, add_flags, guarded, normalise_flags
from robust_core.config import RunConfig, config_from_dict, flag_of
from robust_core.errors import UserError
from robust_core.plan import Plan
from robust_core.session import execute, resume
from robust_core.training import RunDirectory

__all__ = ["TrainingScript"]

Config = TypeVar("Config", bound=RunConfig)
_BARE = ""


@dataclass(frozen=True)
class TrainingScript(Generic[Config]):
    """A script of a paper.

    ``resolve`` makes the configuration of the given flags, and lines to print; ``canonical`` brings given flags to
    the form that a configuration keeps, so that ``--resume`` can compare; ``check_resumed(config, path)`` refuses
    a run that another script began. ``choices`` narrow what a setting may be here, ``defaults`` are what ``--help``
    shows instead of the class's own; ``published`` are the paper's own flags, which may be abbreviated; ``hidden``
    settings follow from others and have no flag. ``bare_resume`` is the setting that ``--resume`` without a value
    switches on, where a paper's flag has a meaning of its own, and ``bare_resume_help`` says what it then does;
    without it, a value is needed.
    """

    name: str
    description: str
    epilog: str
    kind: type[Config]
    plan: Plan[Config]
    resolve: Callable[[Mapping[str, Any]], tuple[Config, list[str]]]
    canonical: Callable[[Mapping[str, Any]], dict[str, Any]]
    check_resumed: Callable[[Config, Path], None] | None = None
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    published: Collection[str] = ()
    hidden: Collection[str] = ()
    bare_resume: str = ""
    bare_resume_help: str = ""

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        """Run with these command-line arguments (default: the process's own); return the exit code."""
        given, resumed, overwrite = self.parse(sys.argv[1:] if arguments is None else arguments)

        def body() -> None:
            if resumed is not None and overwrite:
                raise UserError(
                    "--resume continues a run and --overwrite begins it anew; leave one of them out."
                )
            if resumed is not None:
                self._resume(Path(resumed), given)
            else:
                self._begin(given, overwrite=overwrite)

        return guarded(body)

    def parse(self, arguments: Sequence[str]) -> tuple[dict[str, Any], str | None, bool]:
        """Return the given settings by name, the run to resume, and whether to overwrite."""
        parser = self._parser()
        known = {flag for action in parser._actions for flag in action.option_strings}
        given = vars(parser.parse_args(normalise_flags(arguments, self.published, known)))
        resumed = given.pop("resume")
        if resumed == _BARE:
            given[self.bare_resume], resumed = True, None
        return given, resumed, given.pop("overwrite")

    def _parser(self) -> argparse.ArgumentParser:
        parser = Parser(prog=self.name, description=self.description, epilog=self.epilog)
        about = "continue the run in this directory; needs no other flag"
        bare: dict[str, Any] = {"nargs": "?", "const": _BARE} if self.bare_resume else {}
        if self.bare_resume:
            about += f"; without a directory: {self.bare_resume_help}"
        parser.add_argument("--resume", metavar="RUN_DIR", help=about, **bare)
        parser.add_argument("--overwrite", action="store_true", help="start anew where a run lies already")
        add_flags(parser, self.kind, self.choices, self.defaults, self.hidden)
        return parser

    def _begin(self, given: Mapping[str, Any], *, overwrite: bool) -> None:
        config, notes = self.resolve(given)
        for note in notes:
            print(note)
        print("settings: " + "  ".join(f"{key}={value}" for key, value in config.to_dict().items()))
        execute(config, self.plan, Path(str(config.run_dir)), overwrite=overwrite)

    def _resume(self, path: Path, given: Mapping[str, Any]) -> None:
        stored = config_from_dict(self.kind, RunDirectory.open(path).record["config"])
        if self.check_resumed is not None:
            self.check_resumed(stored, path)
        if differing := self._differing(stored, given):
            raise UserError(
                f"--resume continues {path} with its own settings, but the command line asks for "
                f"{'; '.join(differing)}. Leave these out, or start a new run in another --run-dir."
            )
        resume(stored, self.plan, path)

    def _differing(self, stored: Config, given: Mapping[str, Any]) -> list[str]:
        return [
            f"{flag_of(name)} {value} (the run has {getattr(stored, name)})"
            for name, value in self.canonical(given).items()
            if name != "run_dir" and getattr(stored, name) != value
        ]
