"""Worker processes that leave nothing behind: they end when the process that began them does, however it ends."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading

__all__ = ["begin_quiet_worker", "begin_worker"]


def begin_worker() -> None:
    """Prepare a worker process: it ends when its parent does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def begin_quiet_worker() -> None:
    """Prepare a worker of short tasks: besides, an interrupt is its parent's matter."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begin_worker()


def _end_with_parent() -> None:
    # A parent that is killed leaves its workers at work, or waiting for some for ever: each keeps the queue open.
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
