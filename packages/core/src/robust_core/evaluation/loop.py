"""Evaluation under a protocol: every image, every member, every iterate, judged by the unmodified model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from robust_core.attacks.checks import check_count
from robust_core.data.types import ImageSet
from robust_core.errors import UserError
from robust_core.evaluation.judging import check_model, model_place
from robust_core.evaluation.members import Runner
from robust_core.evaluation.protocols import UNFINISHED, Protocol, as_protocol
from robust_core.evaluation.record import Evaluation
from robust_core.evaluation.work import MemberResult, Progress, Work

__all__ = ["Progress", "evaluate"]


def evaluate(
    model: Callable[[Tensor], Tensor],
    dataset: ImageSet,
    protocol: Protocol | str,
    *,
    batch_size: int = 128,
    seed: int = 0,
    limit: int | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    runners: Mapping[str, Runner] | None = None,
    cascade: bool = False,
    known: Sequence[Evaluation] = (),
    keep: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Return the evaluation of ``model`` (images ``(N, C, H, W)`` in [0, 1] to logits) under a protocol.

    ``protocol`` may be the name of a standard one.

    An image is robust if it is classified right at zero perturbation and at every iterate of every member.
    Attacks run on the frozen view in float32 (float64 for a float64 model), with random starts that depend on
    the seed, the member and the image's index only: neither the batch size, nor the device, nor the other
    images matter (AutoAttack, APGD and the attacks by queries draw per batch). ``limit``: the first so many
    images. ``device``: where the model lies (default: its parameters' device). ``progress(member, done, total)``
    is called after each batch. ``runners`` adds kinds of members. The model, its gradients, mode and buffers and
    the global random state are left as they were.

    ``cascade``: each member attacks only the images that the members before it left standing; the worst case is
    the same union of failures, at a fraction of the cost. ``known``: earlier evaluations of the same weights, from
    which members with equal settings are taken over; ``keep`` is given the evaluation so far after each member, so
    that a long one can be saved and continued.

    Raises ``UserError`` for a model in train mode, a class count that differs from the data set's, an empty
    set or limit, logits of natural images that are not finite, a member with a wrong setting, and a required
    member whose package is missing.
    """
    check_model(model)
    attacked_by = as_protocol(protocol)
    check_count("batch_size", batch_size, 1)
    dataset = _limited(dataset, limit)
    own_device, dtype = model_place(model)
    _check_device(model, device, own_device)
    work = Work(model, dataset, torch.device(device or own_device), dtype, batch_size, seed, progress)
    precision = "float64" if dtype == torch.float64 else "float32"
    with _full_precision(work.device):
        natural = work.natural()
        standing, results = natural.clone(), dict[str, MemberResult]()
        for member in attacked_by.members:
            attacked = standing if cascade else None
            found = work.recall(member, natural, attacked, known)
            found = found or work.run(member, natural, attacked, runners or {})
            results[member.name] = found
            broken = torch.from_numpy(found.attacked & ~found.robust)
            standing &= ~broken.to(standing.device)
            if keep is not None:
                keep(_evaluation(work, attacked_by, natural, results, cascade=cascade, precision=precision))
    return _evaluation(work, attacked_by, natural, results, cascade=cascade, precision=precision)


def _evaluation(
    work: Work,
    protocol: Protocol,
    natural: Tensor,
    results: Mapping[str, MemberResult],
    *,
    cascade: bool,
    precision: str,
) -> Evaluation:
    """Put together what was found under the members of ``results``, which may be the first few."""
    dataset = work.dataset
    ran = {name: result for name, result in results.items() if result.run.ran}
    members = tuple(member for member in protocol.members if member.name in results)
    name = protocol.name if len(members) == len(protocol.members) else f"{protocol.name}{UNFINISHED}"
    return Evaluation(
        protocol=Protocol(name, members),
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
        seed=work.seed,
        precision=precision,
        device=_device_name(work.device),
        batch_size=work.batch_size,
        seconds=sum(result.run.seconds for result in results.values()),
        cascade=cascade,
        weights=work.weights,
    )


def _limited(dataset: ImageSet, limit: int | None) -> ImageSet:
    """Return the first ``limit`` images; refuse none."""
    if limit is not None:
        check_count("limit", limit, 1)
    if limit is not None and limit < len(dataset):
        dataset = dataset.subset(torch.arange(limit, device=dataset.images.device))
    if len(dataset) == 0:
        raise UserError(
            f"Data set '{dataset.info.name}' ({dataset.split}) has no images: nothing to evaluate."
        )
    return dataset


def _check_device(model: object, device: torch.device | str | None, own: torch.device) -> None:
    """Refuse a device that the model does not lie on."""
    if device is not None and isinstance(model, torch.nn.Module) and torch.device(device).type != own.type:
        raise UserError(f"device is '{device}', but the model lies on '{own}': call model.to('{device}').")


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
