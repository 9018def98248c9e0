"""Times and memory of a run, beside its metrics."""

from __future__ import annotations

import time
from typing import Any

from robust_core.training.memory import peak_memory_mib

__all__ = ["Clock"]


class Clock:
    """Measures the time between the lines of a log, without what is left out of it."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.time = time.perf_counter()

    def line(self, step: int, batch_size: int, device: str) -> dict[str, Any] | None:
        """Return the line of ``timings.jsonl`` for the steps since the last one (None without a step)."""
        now = time.perf_counter()
        before, seconds = self.step, now - self.time
        self.step, self.time = step, now
        if step == before:
            return None
        return {
            "step": step,
            "seconds": round(seconds, 3),
            "images_per_second": round((step - before) * batch_size / seconds, 1),
            "peak_memory_mib": peak_memory_mib(device),
        }

    def leave_out(self) -> None:
        """Count nothing of what was done since the last line: evaluation and files are no training."""
        self.time = time.perf_counter()
