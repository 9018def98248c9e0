"""An epoch of our loading against an epoch of a torchvision DataLoader with two workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from benchmarks.speed.clock import alternate, plan_rounds, seconds_of
from benchmarks.speed.setting import Setting, say
from robust_core.data import Batch

__all__ = ["EpochTimes", "epoch_times"]

SHARE = 0.05
"""Share of the benchmark's seconds."""


class EpochTimes(NamedTuple):
    """Seconds of the epochs of each side, paired by round."""

    ours: list[float]
    torchvision: list[float]


def epoch_times(
    part: str,
    setting: Setting,
    epoch: Callable[[], Iterable[Batch]],
    others: Dataset[Any],
    *,
    batch_size: int,
    told: str,
) -> EpochTimes:
    """Time epochs of ``epoch()`` and of a DataLoader of ``others``, in turn, up to images on the device.

    ``part`` and ``told`` say in one line which row this is and what its images are.
    """
    device = setting.device
    loader = DataLoader(
        others,
        batch_size=batch_size,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )

    def theirs() -> int:
        return sum(len(images.to(device, non_blocking=True)) for images, _ in loader)

    def ours() -> int:
        return sum(len(batch) for batch in epoch())

    sides = {"ours": ours, "torchvision": theirs}
    for run in sides.values():  # the workers start here, outside of the clock
        run()
    whole = sum(seconds_of(run, device) for run in sides.values())
    rounds = plan_rounds(whole, SHARE * setting.seconds, least=setting.least_rounds)
    say(f"({part}) {rounds} rounds of about {whole:.1f} s, {told}")
    return EpochTimes(**alternate(sides, rounds, device))
