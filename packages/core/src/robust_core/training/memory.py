"""Peak memory of this process, where the system tells it."""

from __future__ import annotations

import sys

import torch

__all__ = ["peak_memory_mib"]


def peak_memory_mib(device: str) -> int | None:
    """Return the peak in MiB: of the CUDA device, else of the process; None where it cannot be read."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(torch.device(device)) >> 20
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)
