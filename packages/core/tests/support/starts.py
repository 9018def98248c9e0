"""Start scripts in processes of their own, forked from one that has imported torch already.

A new Python that imports torch takes longer than a run of a few steps. That every script starts from nothing
is tested once for each; what is killed and continued again and again begins here.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TextIO

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "torch._dynamo", "matplotlib.figure", "robust_core.session"])

Main = Callable[[Sequence[str]], int]


@dataclass
class Live:
    """A running script: what it prints, line by line, both streams in one."""

    process: BaseProcess
    output: TextIO

    def lines(self) -> Iterator[str]:
        """Yield each line as it appears."""
        for line in self.output:  # not yield from, which would close the stream with the generator  # noqa: UP028
            yield line

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.wait()

    def wait(self) -> tuple[int | None, str]:
        """Return the exit code (-9 after a kill) and the rest of what was printed."""
        with self.output:
            rest = self.output.read()
        self.process.join()
        return self.process.exitcode, rest


def start(main: Main, words: Sequence[object], environment: Mapping[str, str] | None = None) -> Live:
    """Start a script's function with these words."""
    reader, writer = SERVER.Pipe(duplex=False)
    given = (main, [str(word) for word in words], dict(environment or {}), writer)
    process = SERVER.Process(target=_carry_out, args=given)
    process.start()
    writer.close()
    return Live(process, os.fdopen(os.dup(reader.fileno()), encoding="utf8"))


def _carry_out(main: Main, words: list[str], environment: dict[str, str], output: Connection) -> None:
    os.environ.update(environment)
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    sys.exit(main(words))
