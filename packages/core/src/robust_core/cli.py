"""Command lines: flags derived from a configuration class, and the ``robust-core`` command.

Every long flag is accepted with dashes or underscores; budgets may be fractions; an unknown flag is an error.
"""

from __future__ import annotations

import argparse
import re
import sys
import typing
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn, TextIO

from robust_core.config import flag_of
from robust_core.errors import UserError, UserNote, unknown_name
from robust_core.reporting import write_report

__all__ = ["Parser", "add_flags", "fraction", "guarded", "main", "normalise_flags", "truth"]

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def fraction(text: str) -> float:
    """Return a number written as ``0.03`` or ``8/255``.

    >>> fraction("8/255") == 8 / 255
    True
    """
    above, slash, below = text.partition("/")
    try:
        value = float(above) / (float(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"'{text}' is no number; write 0.03 or 8/255") from None
    return value


def truth(text: str) -> bool:
    """Return what a word for yes or no means.

    >>> truth("False")
    False
    """
    words = {
        "true": True,
        "1": True,
        "yes": True,
        "on": True,
        "false": False,
        "0": False,
        "no": False,
        "off": False,
        "": False,
    }
    try:
        return words[text.strip().lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false") from None


def _word(kind: str, choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(str(unknown_name(kind, text, choices)))
        return text

    parse.__name__ = kind
    return parse


def normalise_flags(
    arguments: Sequence[str], published: Collection[str] = (), known: Collection[str] = ()
) -> list[str]:
    """Return the arguments with ``_`` in long flags written as ``-`` (values are left alone).

    A negative number is tied to its flag, so that it is refused for its value and not taken for a flag. What
    abbreviates exactly one of the ``published`` flags is that flag, whatever flags of ours begin likewise, unless it
    is itself a ``known`` flag.

    >>> normalise_flags(["--rand_init", "False", "--data_dir=a_b", "--epsilon", "-8/255"])
    ['--rand-init', 'False', '--data-dir=a_b', '--epsilon=-8/255']
    """
    result: list[str] = []
    for argument in arguments:
        if argument.startswith("--"):
            flag, sign, value = argument.partition("=")
            flag = flag.replace("_", "-")
            short = len(flag) > 2 and flag not in known
            meant = [name for name in published if name.startswith(flag)] if short else []
            result.append((meant[0] if len(meant) == 1 else flag) + sign + value)
        elif (
            re.match(r"-[\d.]", argument) and result and result[-1].startswith("--") and "=" not in result[-1]
        ):
            result[-1] += f"={argument}"
        else:
            result.append(argument)
    return result


class _JoinWords(argparse.Action):
    """Keep several words as one text, with commas between them."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        del parser, option_string
        setattr(namespace, self.dest, ",".join(values))


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, without the list of all flags."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2 and the sentence."""
        self.exit(EXIT_USER_ERROR, f"error: {self.prog}: {message}; --help lists all flags\n")


def add_flags(
    parser: argparse.ArgumentParser,
    kind: type[Any],
    choices: Mapping[str, tuple[str, ...]] | None = None,
    defaults: Mapping[str, Any] | None = None,
    hidden: Collection[str] = (),
) -> None:
    """Add one flag per setting of ``kind``; only given flags appear in the result of parsing.

    ``kind`` is a dataclass of options (:func:`robust_core.config.option`): a run's, or a script's own.
    ``choices`` narrows what a setting may be in this script; the first is shown as the default. ``defaults`` are
    shown instead of the class's own; ``hidden`` settings have no flag.
    """
    narrowed, own = choices or {}, defaults or {}
    groups: dict[str, Any] = {}
    hints = typing.get_type_hints(kind)
    for entry in fields(kind):
        if entry.name in hidden:
            continue
        title = entry.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        default = own.get(entry.name, entry.default)
        _add_flag(groups[title], entry, hints[entry.name], narrowed.get(entry.name, ()), default)


def _add_flag(group: Any, entry: Field[Any], hint: Any, narrowed: tuple[str, ...], default: Any) -> None:
    flag = flag_of(entry.name)
    extra = list(entry.metadata["flags"])
    choices = narrowed or tuple(entry.metadata["choices"])
    shown = narrowed[0] if narrowed else _shown(default, entry.metadata["kind"])
    words = f": {', '.join(word for word in choices if word)}" if choices else ""
    note = f"{entry.metadata['help']}{words}" + (f" (default: {shown})" if shown else "")
    common: dict[str, Any] = {
        "dest": entry.name,
        "default": argparse.SUPPRESS,
        "help": note.replace("%", "%%"),
    }
    if hint is bool:
        group.add_argument(flag, *extra, nargs="?", const=True, type=truth, metavar="yes|no", **common)
        if not entry.name.startswith("no_"):
            opposite = f"--no-{flag[2:]}"
            off = {**common, "help": argparse.SUPPRESS}
            group.add_argument(opposite, action="store_const", const=False, **off)
        return
    kinds = [part for part in (typing.get_args(hint) or (hint,)) if part is not type(None)]
    parse: Callable[[str], Any] = kinds[0]
    metavar = {int: "N", float: "X", str: "TEXT"}[kinds[0]]
    if choices:
        parse, metavar = _word(flag[2:], choices), "WORD"
    elif entry.metadata["kind"] == "fraction":
        parse, metavar = fraction, "X/Y"
    if entry.metadata["kind"] == "words":
        common.update(nargs="+", action=_JoinWords)
    group.add_argument(flag, *extra, type=parse, metavar=metavar, **common)


def _shown(default: Any, kind: str) -> str:
    if default is None:
        return ""
    if kind == "fraction":
        return f"{float(default) * 255:g}/255"
    if isinstance(default, bool):
        return "yes" if default else "no"
    return str(default)


def guarded(run: Callable[[], object], again: str = "continue with --resume and the run's directory") -> int:
    """Run a script's body; a user's mistake ends in one sentence and exit code 2, never in a traceback.

    Notes to the user are one line too, without the place in the code. ``again`` tells who interrupts it how to go on.
    """
    try:
        with _plain_notes():
            run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"interrupted: {again}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


@contextmanager
def _plain_notes() -> Iterator[None]:
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, UserNote):
                print(f"warning: {message}", file=sys.stderr)
            else:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``robust-core`` command: ``robust-core report RUN`` writes a run's figures and page again."""
    parser = Parser(prog="robust-core", description="Tools of the shared core.")
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="write figures and report.html of a run directory")
    report.add_argument("run", type=Path, help="run directory")
    given = parser.parse_args(arguments)
    return guarded(lambda: print(write_report(given.run)))


if __name__ == "__main__":
    sys.exit(main())
