"""Many image files decoded in order, by worker processes that import neither torch nor the caller's script."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import types
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from robust_core.errors import UserError
from robust_core.image_files import Steps, decode_files
from robust_core.workers import begin_quiet_worker

__all__ = ["decoded_in_order", "usable_processors", "workers_for"]

FEW = 256
"""Up to so many images are decoded here: workers would take as long to start."""
CHUNK = 16
_Result = bytes | str | None


def usable_processors() -> int:
    """Return how many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def workers_for(count: int, workers: int | None) -> int:
    """Return how many processes decode ``count`` images: ``workers`` at most (None: one per processor).

    Raises:
        UserError: if ``workers`` is below 1.
    """
    if workers is not None and workers < 1:
        raise UserError(f"{workers} processes cannot decode images; give --workers 1 or more.")
    if count <= FEW:
        return 1
    return min(workers or usable_processors(), -(-count // CHUNK))


def decoded_in_order(
    paths: Sequence[str], digests: Sequence[str], steps: Steps, workers: int
) -> Generator[_Result, None, None]:
    """Yield for each file what :func:`robust_core.image_files.decode_files` says of it.

    Raises:
        UserError: if a worker process is ended from outside.
    """
    chunks = [slice(first, first + CHUNK) for first in range(0, len(paths), CHUNK)]
    if workers == 1:
        for chunk in chunks:
            yield from decode_files(paths[chunk], digests[chunk], steps)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=begin_quiet_worker)
    waiting: deque[Future[list[_Result]]] = deque()
    try:
        for chunk in chunks:
            with _without_main():
                waiting.append(pool.submit(decode_files, paths[chunk], digests[chunk], steps))
            if len(waiting) > 4 * workers:  # so that no more than this waits in memory
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "A process that decodes images was ended from outside (out of memory?); start again with --workers 1."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the caller's script from processes that start here: they would run it again, guarded or not."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
