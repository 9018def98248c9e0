"""Randomness as a function of (seed, purpose, position): nothing random is ever saved.

A resumed run draws the same numbers by construction, evaluation cannot disturb training, and several
processes agree because everything is drawn for the global batch and sliced by rank.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["derived_seed", "generator_for", "rows_of_rank", "seeded", "slice_of_rank"]


def derived_seed(seed: int, purpose: str, *position: int) -> int:
    """Return a 63-bit seed that depends on all arguments and on nothing else.

    >>> derived_seed(1, "order", 0) == derived_seed(1, "order", 0) != derived_seed(1, "order", 1)
    True
    """
    text = "/".join([str(seed), purpose, *map(str, position)])
    digest = hashlib.blake2b(text.encode("utf8"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(
    seed: int, purpose: str, *position: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a fresh generator for one purpose at one position, e.g. ``(1, "augment", epoch, step)``."""
    generator = torch.Generator(device=device)
    generator.manual_seed(derived_seed(seed, purpose, *position))
    return generator


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Let the CPU's global random state begin with ``seed`` (None: go on) and put it back afterwards.

    For what takes no generator, such as the initialisation of a network.
    """
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            # torch.manual_seed would also reseed every GPU, which the fork does not restore.
            torch.default_generator.manual_seed(seed)
        yield


def slice_of_rank(global_draw: Tensor, rank: int, world_size: int) -> Tensor:
    """Return the rows of a draw ``(N, ...)`` for the global batch that belong to one process.

    The rows of all ranks, one after the other, are the global batch; sizes differ by at most one.
    """
    total = global_draw.shape[0]
    return global_draw[total * rank // world_size : total * (rank + 1) // world_size]


def rows_of_rank(total: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return the rows (first, one after the last) of a global batch of ``total`` images that one process works on.

    Those of :func:`slice_of_rank`; a batch of fewer images than processes is worked on whole by each of them,
    because a process without images would have no gradients and no batch statistics to share.
    """
    if total < world_size:
        return 0, total
    return total * rank // world_size, total * (rank + 1) // world_size
