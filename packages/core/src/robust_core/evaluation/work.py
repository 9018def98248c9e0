"""One evaluation in progress: the model, the data, where they lie, and one member after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from robust_core import attacks
from robust_core.data.types import ImageSet
from robust_core.errors import UserError
from robust_core.evaluation.judging import CountingNetwork, Judge, weights_digest
from robust_core.evaluation.members import RUNNERS, AttackCall, MemberUnavailable, Runner
from robust_core.evaluation.protocols import UNFINISHED, Member, check_settings
from robust_core.evaluation.record import Evaluation, MemberRun
from robust_core.models import frozen

__all__ = ["TAKEN_OVER", "MemberResult", "Progress", "Work"]

Progress = Callable[[str, int, int], None]
TAKEN_OVER = "taken over from an earlier evaluation of the same network, images and seed"


class MemberResult:
    """Arrays per image that one member fills batch by batch; outside ``attacked`` they stay False."""

    def __init__(self, count: int) -> None:
        self.last = np.zeros(count, dtype=bool)
        self.robust = np.zeros(count, dtype=bool)
        self.attacked = np.zeros(count, dtype=bool)
        self.run = MemberRun()


class Work:
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
        self.weights = weights_digest(model)
        self._network: Callable[[Tensor], Tensor] | None = None

    def network(self) -> Callable[[Tensor], Tensor]:
        """Return what attacks run on: the frozen view, built once."""
        if self._network is None:
            self._network = frozen(self.model)
        return self._network

    def batches(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (rows, images, labels) of the images at ``rows`` ``(n,)``."""
        for first in range(0, len(rows), self.batch_size):
            part = rows[first : first + self.batch_size]
            images = self.dataset.pixels(part).to(self.device, self.dtype)
            yield part, images, self.dataset.labels[part].to(self.device)

    def natural(self) -> Tensor:
        """Return which images are classified right at zero perturbation, bool ``(N,)`` on the device."""
        verdicts, sound = [], []
        count, done = len(self.dataset), 0
        for part, images, labels in self.batches(self.everyone(count)):
            with torch.no_grad():
                logits = self.model(images)
            if not done:
                self._check_classes(logits)
            verdicts.append(logits.argmax(dim=1) == labels)
            sound.append(logits.isfinite().all(dim=1))
            done += len(part)
            self.progress("natural", done, count)
        self._check_finite(torch.cat(sound))
        return torch.cat(verdicts)

    def everyone(self, count: int) -> Tensor:
        """Return the rows of the first ``count`` images."""
        return torch.arange(count, device=self.dataset.images.device)

    def rows_of(self, member: Member, standing: Tensor | None) -> Tensor:
        """Return the rows that a member attacks: its first images, of these only the ``standing`` if given."""
        rows = self.everyone(min(len(self.dataset), member.images or len(self.dataset)))
        return rows if standing is None else rows[standing[rows.to(standing.device)].to(rows.device)]

    def run(
        self, member: Member, natural: Tensor, standing: Tensor | None, extra: Mapping[str, Runner]
    ) -> MemberResult:
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
        result = MemberResult(len(self.dataset))
        try:
            self._attack(member, runners[member.kind], natural, self.rows_of(member, standing), result)
        except MemberUnavailable as missing:
            if member.required:
                raise UserError(f"'{member.name}' was asked for, but {missing}") from missing
            result = MemberResult(len(self.dataset))
            result.run = MemberRun(remedy=str(missing))
        return result

    def recall(
        self, member: Member, natural: Tensor, standing: Tensor | None, known: Sequence[Evaluation]
    ) -> MemberResult | None:
        """Return what the same member found before, if it attacked all these images of the same model then.

        The same model has the same tensors and is right on the same natural images (a function has no tensors: then
        the caller must know).
        """
        rows = self.rows_of(member, standing).cpu().numpy()
        indices = self.dataset.indices.cpu().numpy()
        data = {"name": self.dataset.info.name, "split": self.dataset.split, "digest": self.dataset.digest}
        for other in known:
            run = other.runs.get(member.name)
            same = run is not None and run.ran and other.seed == self.seed and other.data == data
            same = same and other.weights == self.weights
            if not same or not any(_alike(member, candidate) for candidate in other.protocol.members):
                continue
            places = {int(index): place for place, index in enumerate(other.indices)}
            there = np.array([places.get(int(index), -1) for index in indices])
            attacked = other.attacked[member.name]
            if (there[rows] < 0).any() or not attacked[there[rows]].all():
                continue
            shared = there >= 0
            if (other.natural[there[shared]] != natural.cpu().numpy()[shared]).any():
                continue
            result = MemberResult(len(self.dataset))
            result.last[rows] = other.last[member.name][there[rows]]
            result.robust[rows] = other.robust[member.name][there[rows]]
            result.attacked[rows] = True
            goes_on = other.protocol.name.endswith(UNFINISHED) and other.batch_size == self.batch_size
            result.run = _as_if_run(other.runs[member.name], len(rows), flagged=not goes_on)
            return result
        return None

    def _attack(
        self, member: Member, runner: Runner, natural: Tensor, rows: Tensor, result: MemberResult
    ) -> None:
        """Attack batch by batch and fill the result."""
        network = CountingNetwork(self.network())
        flags: list[str] = []
        judging = done = 0
        begun = time.perf_counter()
        for part, images, labels in self.batches(rows):
            judge = Judge(
                self.model,
                images,
                labels,
                right=natural[part.to(natural.device)],
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
                indices=self.dataset.indices[part].tolist(),
                observe=judge.observe,
                standing=judge.standing,
                flag=flags.append,
            )
            last, robust = judge.verdict(runner(call))
            place = part.cpu().numpy()
            result.last[place] = last.cpu().numpy()
            result.robust[place] = robust.cpu().numpy()
            result.attacked[place] = True
            judging += judge.passes
            done += len(part)
            self.progress(member.name, done, len(rows))
        result.run = replace(
            result.run,
            images=len(rows),
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


def _alike(one: Member, other: Member) -> bool:
    """Return whether two members attack in the same way, on whichever images."""
    return (one.name, one.kind, one.settings) == (other.name, other.kind, other.settings)


def _as_if_run(run: MemberRun, images: int, *, flagged: bool) -> MemberRun:
    """Return the cost of a member that is taken over, for as many images; an evaluation that goes on needs no flag."""
    share = images / max(run.images, 1)
    passes = {name: round(share * getattr(run, name)) for name in ("forward", "backward", "judging")}
    flags = tuple(dict.fromkeys((*run.flags, TAKEN_OVER))) if flagged else run.flags
    return replace(run, images=images, seconds=share * run.seconds, flags=flags, **passes)


def _no_progress(*_: object) -> None:
    """Report nothing."""
