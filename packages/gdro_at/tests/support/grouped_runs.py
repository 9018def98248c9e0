"""Small runs on images with groups: 24 drawn images of two classes on two backgrounds, a network of few channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Killed, StopAt, constant, same, training, weights_of

from robust_core.data import ImageSet, dataset_info
from robust_core.models import build_model
from robust_core.training import Hooks, LoopSettings, Phase, Training

COUNTS = (10, 2, 4, 8)


def grouped_set(counts: tuple[int, ...] = COUNTS, seed: int = 0, split: str = "train") -> ImageSet:
    """Return noise whose first channel follows the class and whose second the background; ``counts`` per group."""
    groups = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    groups = groups[order]
    images = torch.rand(len(groups), 3, 32, 32, generator=torch.Generator().manual_seed(seed + 1)) * 155
    images[:, 0] += 100.0 * (groups // 2)[:, None, None]
    images[:, 1] += 100.0 * (groups % 2)[:, None, None]
    info = dataset_info("shapes-grouped")
    return ImageSet(
        info, split, images.to(torch.uint8), groups // 2, torch.arange(len(groups)), groups, "made"
    )


def grouped_run(
    path: Path,
    phases: Callable[[], list[Phase]],
    *,
    validation: ImageSet | None = None,
    **changes: Any,
) -> Training:
    """Return a run of the loop on :func:`grouped_set`, new or to be continued, with three steps in an epoch."""
    settings = LoopSettings(batch_size=8, log_interval=1, checkpoint_every=1, weight_decay=1e-2)
    values = {"data": grouped_set(), "settings": settings, "model": build_model("resnet8-s2", 2, seed=1)}
    run = training(path, phases, **{**values, **changes})
    run.validation = validation
    return run


def one_phase(make: Callable[[], Any], steps: int = 5) -> Callable[[], list[Phase]]:
    """Return a function that makes a phase of a new method."""
    return lambda: [Phase("main", make(), steps, constant(0.02))]


def check_resume(
    path: Path,
    phases: Callable[[], list[Phase]],
    stop: int,
    validation: ImageSet | None = None,
) -> Training:
    """Check that a run killed at step ``stop`` and resumed equals an uninterrupted one, which is returned."""
    whole = grouped_run(path / "whole", phases, validation=validation)
    whole.fit()
    with pytest.raises(Killed):
        grouped_run(path / "cut", phases, validation=validation, hooks=Hooks(scalar=StopAt(stop))).fit()
    resumed = grouped_run(path / "cut", phases, validation=validation)
    resumed.fit()
    assert same(weights_of(whole), weights_of(resumed))
    assert (path / "whole/metrics.jsonl").read_bytes() == (path / "cut/metrics.jsonl").read_bytes()
    buffers = [run.optimizer.state_dict()["state"] for run in (whole, resumed)]
    for key, state in buffers[0].items():
        assert torch.equal(state["momentum_buffer"], buffers[1][key]["momentum_buffer"])
    return whole


def step_lines(run: Training) -> list[dict[str, Any]]:
    """Return the lines of single steps of a run's metrics."""
    return [line for line in run.run.metrics() if line["kind"] == "step"]
