"""Evaluation under a protocol: every image, every member, every iterate, judged by the unmodified model."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from robust_core import attacks
from robust_core.attacks.checks import check_count
from robust_core.data.types import ImageSet
from robust_core.errors import UserError
from robust_core.evaluation.judging import CountingNetwork, Judge, check_model, model_place
from robust_core.evaluation.members import RUNNERS, AttackCall, MemberUnavailable, Runner
from robust_core.evaluation.protocols import Member, Protocol, as_protocol, check_settings
from robust_core.evaluation.record import Evaluation, MemberRun
from robust_core.models import frozen

__all__ = ["Progress", "evaluate"]

Progress = Callable[[str, int, int], None]


def evaluate(
    model: Callable[[Tensor], Tensor],
    dataset: ImageSet,
    protocol: Protocol | str,
    *,
    batch_size: int = 128,
    seed: int = 0,
    limit: int | None = None,
    device: torch.device | str | None = None,
    precision_note: str = "float32",
    progress: Progress | None = None,
    runners: Mapping[str, Runner] | None = None,
) -> Evaluation:
    """Return the evaluation of ``model`` (images ``(N, C, H, W)`` in [0, 1] to logits) under a protocol.

    ``protocol`` may be the name of a standard one.

    An image is robust if it is classified right at zero perturbation and at every iterate of every member.
    Attacks run on the frozen view in float32 (float64 for a float64 model), with random starts that depend on
    the seed, the member and the image's index only: neither the batch size, nor the device, nor the other
    images matter (AutoAttack and APGD draw per batch). ``limit``: the first so many images. ``device``: where
    the model lies (default: its parameters' device). ``progress(member, done, total)`` is called after each
    batch. ``runners`` adds kinds of members. The model, its gradients, mode and buffers and the global random
    state are left as they were.

    Raises ``UserError`` for a model in train mode, a class count that differs from the data set's, an empty
    set or limit, logits of natural images that are not finite, a member with a wrong setting, and a required
    member whose package is missing.
    """
    check_model(model)
    attacked_by = as_protocol(protocol)
    if limit is not None:
        check_count("limit", limit, 1)
    check_count("batch_size", batch_size, 1)
    if limit is not None and limit < len(dataset):
        dataset = dataset.subset(torch.arange(limit, device=dataset.images.device))
    if len(dataset) == 0:
        raise UserError(
            f"Data set '{dataset.info.name}' ({dataset.split}) has no images: nothing to evaluate."
        )
    own_device, dtype = model_place(model)
    if (
        device is not None
        and isinstance(model, torch.nn.Module)
        and torch.device(device).type != own_device.type
    ):
        raise UserError(
            f"device is '{device}', but the model lies on '{own_device}': call model.to('{device}')."
        )
    work = _Work(model, dataset, torch.device(device or own_device), dtype, batch_size, seed, progress)
    with _full_precision(work.device):
        begun = time.perf_counter()
        natural = work.natural()
        results = {member.name: work.run(member, natural, runners or {}) for member in attacked_by.members}
        seconds = time.perf_counter() - begun
    ran = {name: result for name, result in results.items() if result.run.ran}
    return Evaluation(
        protocol=attacked_by,
        natural=natural.cpu().numpy(),
        last={name: result.last for name, result in ran.items()},
        robust={name: result.robust for name, result in ran.items()},
        attacked={name: result.attacked for name, result in ran.items()},
        labels=dataset.labels.cpu().numpy(),
        groups=None if dataset.groups is None else dataset.groups.cpu().numpy(),
        indices=dataset.indices.cpu().numpy(),
        runs={name: result.run for name, result in results.items()},
        class_names=dataset.info.classes,
        group_names=dataset.info.groups,
        data={"name": dataset.info.name, "split": dataset.split, "digest": dataset.digest},
        seed=seed,
        precision="float64" if dtype == torch.float64 else precision_note,
        device=_device_name(work.device),
        batch_size=batch_size,
        seconds=seconds,
    )


class _MemberResult:
    """Arrays per image that one member fills batch by batch; outside ``attacked`` they stay False."""

    def __init__(self, count: int) -> None:
        self.last = np.zeros(count, dtype=bool)
        self.robust = np.zeros(count, dtype=bool)
        self.attacked = np.zeros(count, dtype=bool)
        self.run = MemberRun()


class _Work:
    """One evaluation in progress: the model, the data and where they lie."""

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        dataset: ImageSet,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.model = model
        self.dataset = dataset
        self.device = device
        self.dtype = dtype
        self.batch_size = batch_size
        self.seed = seed
        self.progress = progress or _no_progress
        self._network: Callable[[Tensor], Tensor] | None = None

    def network(self) -> Callable[[Tensor], Tensor]:
        """Return what attacks run on: the frozen view, built once."""
        if self._network is None:
            self._network = frozen(self.model)
        return self._network

    def batches(self, count: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield (place, images, labels) of the first ``count`` images."""
        for first in range(0, count, self.batch_size):
            place = slice(first, min(first + self.batch_size, count))
            images = self.dataset.pixels(place).to(self.device, self.dtype)
            yield place, images, self.dataset.labels[place].to(self.device)

    def natural(self) -> Tensor:
        """Return which images are classified right at zero perturbation, bool ``(N,)`` on the device."""
        verdicts, sound = [], []
        count = len(self.dataset)
        for place, images, labels in self.batches(count):
            with torch.no_grad():
                logits = self.model(images)
            if place.start == 0:
                self._check_classes(logits)
            verdicts.append(logits.argmax(dim=1) == labels)
            sound.append(logits.isfinite().all(dim=1))
            self.progress("natural", place.stop, count)
        self._check_finite(torch.cat(sound))
        return torch.cat(verdicts)

    def run(self, member: Member, natural: Tensor, extra: Mapping[str, Runner]) -> _MemberResult:
        """Let one member attack; without its package its row says so unless the member is required."""
        runners = {**RUNNERS, **extra}
        if member.kind not in runners:
            raise UserError(f"Member '{member.name}' is of unknown kind '{member.kind}': {sorted(runners)}.")
        if member.images is not None and member.images < 1:
            raise UserError(
                f"Member '{member.name}' has images={member.images}, expected at least 1 (None: all)."
            )
        # An added runner takes what settings it likes; the attacks of the core say what they take.
        check_settings(member, None if member.kind in extra else getattr(attacks, member.kind))
        result = _MemberResult(len(self.dataset))
        try:
            self._attack(member, runners[member.kind], natural, result)
        except MemberUnavailable as missing:
            if member.required:
                raise UserError(f"'{member.name}' was asked for, but {missing}") from missing
            result.run = MemberRun(remedy=str(missing))
        return result

    def _attack(self, member: Member, runner: Runner, natural: Tensor, result: _MemberResult) -> None:
        """Attack batch by batch and fill the result."""
        count = min(len(self.dataset), member.images or len(self.dataset))
        network = CountingNetwork(self.network())
        flags: list[str] = []
        judging = 0
        begun = time.perf_counter()
        for place, images, labels in self.batches(count):
            judge = Judge(
                self.model,
                images,
                labels,
                right=natural[place],
                eps=float(member.settings["eps"]),
                norm=str(member.settings.get("norm", "linf")),
            )
            call = AttackCall(
                network=network,
                # The layout that the frozen view computes in, so that no step converts it.
                images=images.contiguous(memory_format=torch.channels_last),
                labels=labels,
                settings=member.settings,
                purpose=f"evaluate-{member.name}",
                seed=self.seed,
                indices=self.dataset.indices[place].tolist(),
                observe=judge.observe,
                flag=flags.append,
            )
            last, robust = judge.verdict(runner(call))
            result.last[place] = last.cpu().numpy()
            result.robust[place] = robust.cpu().numpy()
            result.attacked[place] = True
            judging += judge.passes
            self.progress(member.name, place.stop, count)
        result.run = replace(
            result.run,
            images=count,
            forward=network.forward_passes,
            backward=network.backward_passes,
            judging=judging,
            seconds=time.perf_counter() - begun,
            flags=tuple(dict.fromkeys(flags)),
        )

    def _check_classes(self, logits: Tensor) -> None:
        """Refuse a model whose outputs are not the data set's classes."""
        classes = self.dataset.info.num_classes
        given: object = logits
        if not isinstance(given, Tensor):
            raise UserError(
                f"The model returned a {type(given).__name__}, expected logits (n, {classes}): "
                "give a model that returns the logits alone."
            )
        if logits.dim() != 2 or logits.shape[1] != classes:
            raise UserError(
                f"The model gives outputs of shape {tuple(logits.shape)}, but '{self.dataset.info.name}' has "
                f"{classes} classes: build the model with num_classes={classes}."
            )
        low, high = int(self.dataset.labels.min()), int(self.dataset.labels.max())
        if low < 0 or high >= classes:
            raise UserError(
                f"Labels lie in {low}..{high}, expected 0..{classes - 1}: check the data set's labels."
            )

    def _check_finite(self, sound: Tensor) -> None:
        """Refuse a model that is broken before any attack: its robust accuracy of 0 would look measured."""
        bad = (~sound).nonzero()[:, 0].tolist()
        if bad:
            raise UserError(
                f"The model's logits are not finite (NaN or infinite) for {len(bad)} of {len(sound)} natural "
                f"images, first for image {int(self.dataset.indices[bad[0]])}: load sound weights."
            )


def _no_progress(*_: object) -> None:
    """Report nothing."""


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Keep autocast off and, on CUDA, convolutions and products in full float32 instead of TF32."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            stack.enter_context(_ieee(torch.backends.cudnn.conv))  # type: ignore[attr-defined]
            stack.enter_context(_ieee(torch.backends.cuda.matmul))
        yield


@contextlib.contextmanager
def _ieee(switch: object) -> Iterator[None]:
    """Set one ``fp32_precision`` switch to IEEE float32 and put it back."""
    before = switch.fp32_precision  # type: ignore[attr-defined]
    switch.fp32_precision = "ieee"  # type: ignore[attr-defined]
    try:
        yield
    finally:
        switch.fp32_precision = before  # type: ignore[attr-defined]
