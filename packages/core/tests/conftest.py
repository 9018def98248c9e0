"""Fixtures of the core's tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute in one thread: small networks lose more by waiting for each other than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def kept_trace() -> Iterator[None]:
    """Give the coverage its trace function back: a library that is tested against switches it off for good."""
    trace = sys.gettrace()
    yield
    if sys.gettrace() is not trace:
        sys.settrace(trace)
