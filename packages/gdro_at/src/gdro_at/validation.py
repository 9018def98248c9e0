"""What a split's images look like to the network, per group, natural and under the test attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gdro_at.attacks import ascend_between
from gdro_at.statistics import Statistics, csv_row, log_text, model_norm_sq
from gdro_at.units import UnitMeans, unit_means
from gdro_at.weights import GroupRule, RuleState, constants, greedy_weights, step
from robust_core.attacks import apgd
from robust_core.attacks.objectives import cross_entropy
from robust_core.data import ImageSet
from robust_core.models import FrozenView
from robust_core.randomness import generator_for

__all__ = [
    "GroupFigures",
    "TestAttack",
    "attacked_logits",
    "first_of_each_group",
    "group_figures",
    "published_row",
]

Prepare = Callable[[Tensor], Tensor]
ImageLoss = Callable[[Tensor, Tensor], Tensor]
APGD_STEPS = 100


@dataclass(frozen=True)
class TestAttack:
    """The attack of ``--test-type``: ``erm`` none, ``pgd`` ten steps of cross-entropy, ``AA`` APGD on it.

    The published "AA" is APGD-CE alone, which is what this is; no figure of it is called AutoAttack's. ``eps`` in
    pixels of [0, 1]; PGD starts uniformly in ``+-start`` (None: ``eps``; officially 0.0001), unclipped where ``start``
    is given, and keeps to the pixels ``clip`` (``--clmin``, ``--clmax``).
    """

    __test__ = False  # no test, whatever pytest makes of the name

    kind: str
    eps: float
    steps: int = 10
    step_size: float | None = None
    start: float | None = None
    clip: tuple[float, float] = (0.0, 1.0)

    def __call__(self, view: FrozenView, images: Tensor, labels: Tensor, draw: Tensor) -> Tensor:
        """Return attacked images; ``draw`` are numbers in [0, 1), shaped as the images."""
        if self.kind == "erm":
            return images
        if self.kind == "AA":
            return apgd(view, images, labels, eps=self.eps, steps=APGD_STEPS, start=self._start(images, draw))
        return ascend_between(
            view,
            images,
            labels,
            clip=self.clip,
            start=self._start(images, draw),
            eps=self.eps,
            step_size=self.eps / 4 if self.step_size is None else self.step_size,
            steps=self.steps,
            objective=cross_entropy,
        )

    def _start(self, images: Tensor, draw: Tensor) -> Tensor:
        noise = 2.0 * draw - 1.0
        if self.start is not None:
            return images + self.start * noise
        return (images + self.eps * noise).clamp(0.0, 1.0)


def first_of_each_group(images: ImageSet, count: int) -> ImageSet:
    """Return the first ``count`` images in all, as many of each group (or class), in their order; 0: all of them.

    A fair sample of each group only if their order is: :func:`gdro_at.data.load_groups` sees to it. A group that has
    too few gives what it has.
    """
    if not count:
        return images
    units = images.labels if images.groups is None else images.groups
    each = max(1, count // len(images.info.groups or images.info.classes))
    rank = torch.zeros_like(units)
    for unit in units.unique():
        members = units == unit
        rank[members] = torch.arange(int(members.sum()), device=units.device)
    return images.subset((rank < each).nonzero().flatten().cpu())


class _Logits(NamedTuple):
    natural: Tensor
    attacked: Tensor | None  # None: no attack ran

    @property
    def tested(self) -> Tensor:
        """What losses and the published logs are about: the attacked logits, or without an attack the natural ones."""
        return self.natural if self.attacked is None else self.attacked


def attacked_logits(
    model: nn.Module,
    data: ImageSet,
    attack: TestAttack,
    *,
    seed: int,
    batch_size: int = 128,
    prepare: Prepare | None = None,
) -> _Logits:
    """Return natural and attacked logits ``(N, classes)`` of all images, in evaluation mode; ``erm`` attacks none.

    The random start depends on the seed and the image's index only. ``prepare`` is applied to the images before
    anything else sees them (the published normalisation of COVID's).
    """
    view = FrozenView(model)
    natural, attacked = [], []
    for start in range(0, len(data), batch_size):
        rows = torch.arange(start, min(start + batch_size, len(data)))
        images = data.pixels(rows)
        images = images if prepare is None else prepare(images)
        labels = data.labels[rows.to(data.labels.device)]
        draw = torch.stack([_draw(seed, int(index), images) for index in data.indices[rows]])
        with torch.no_grad():
            natural.append(view(images))
            if attack.kind != "erm":
                attacked.append(view(attack(view, images, labels, draw)))
    return _Logits(torch.cat(natural), torch.cat(attacked) if attacked else None)


def _draw(seed: int, index: int, images: Tensor) -> Tensor:
    generator = generator_for(seed, "test attack", index)
    return torch.rand(images.shape[1:], generator=generator).to(images)


@dataclass(frozen=True)
class GroupFigures:
    """Accuracies of one split by kind, ``natural`` and, if an attack ran, ``attacked``.

    ``groups`` are those per group ``(G,)`` (NaN without images), ``averages`` those of all images. ``loss`` is the mean
    loss under the attack, if one ran, or that of the worst groups (:func:`group_figures`).
    """

    groups: Mapping[str, Tensor]
    averages: Mapping[str, float]
    loss: float

    def as_dict(self) -> dict[str, float]:
        """Return the figures by name; a group without images has none, and the worst is taken of the others."""
        found = {f"{kind}_accuracy": value for kind, value in self.averages.items()}
        found |= {f"{kind}_worst_group": _worst(values) for kind, values in self.groups.items()}
        found["validation_loss"] = self.loss
        for kind, values in self.groups.items():
            for group, value in enumerate(values.tolist()):
                if value == value:
                    found[f"{kind}_accuracy_group:{group}"] = value
        return found


def _worst(accuracies: Tensor) -> float:
    return float(accuracies[~accuracies.isnan()].min())


def group_figures(
    logits: _Logits, data: ImageSet, *, worst_share: float | None = None, loss: ImageLoss = cross_entropy
) -> GroupFigures:
    """Return the figures of a split under a loss per image.

    ``worst_share``: the figure ``loss`` is that of the worst share of the data, by groups, not the mean.
    """
    groups, count = _groups_of(data)
    labels = data.labels
    kinds = {"natural": logits.natural, "attacked": logits.attacked}
    right = {
        kind: (found.argmax(dim=1) == labels).float() for kind, found in kinds.items() if found is not None
    }
    losses = loss(logits.tested, labels)
    of_loss, *of_kinds = unit_means([losses, *right.values()], groups, count)
    counts = of_loss.counts
    absent = torch.where(counts > 0, 0.0, torch.nan)
    total = losses.mean()
    if worst_share is not None:
        weights = greedy_weights(of_loss.means, counts / counts.sum(), alpha=worst_share)
        total = (weights * of_loss.means).sum()
    return GroupFigures(
        groups={kind: found.means + absent for kind, found in zip(right, of_kinds, strict=True)},
        averages={kind: float(values.mean()) for kind, values in right.items()},
        loss=float(total),
    )


def _groups_of(data: ImageSet) -> tuple[Tensor, int]:
    if data.groups is None or data.info.groups is None:
        return data.labels, data.info.num_classes
    return data.groups, len(data.info.groups)


def published_row(
    model: nn.Module,
    logits: _Logits,
    data: ImageSet,
    rule: GroupRule | None,
    *,
    epoch: int,
    batch_size: int,
    weight_decay: float,
    loss: ImageLoss = cross_entropy,
) -> dict[str, Any]:
    """Return the row and the text that the published code logs of a split, from its attacked logits, if any.

    ``rule`` weighs groups while the batches of ``batch_size`` pass, as published (its adjustment is 0 here); None is
    the plain mean. The logged loss depends on the order of the data; accuracies do not.
    """
    groups, count = _groups_of(data)
    plain = GroupRule(
        training_counts=tuple(torch.bincount(groups, minlength=count).tolist()), weighting="mean"
    )
    rule = plain if rule is None else rule
    state = RuleState.start(rule, device=data.labels.device)
    statistics = Statistics.start(count, device=data.labels.device)
    batches = torch.arange(len(data), device=data.labels.device).split(batch_size)
    for rows in batches:
        labels = data.labels[rows]
        losses = loss(logits.tested[rows], labels)
        hits = (logits.tested[rows].argmax(dim=1) == labels).float()
        natural, right = unit_means([losses, hits], groups[rows], count)
        taken = step(rule, state, natural)
        state = taken.state
        used = UnitMeans(natural.means + taken.shift, natural.counts)
        statistics = statistics.updated(used, right.means, taken.natural_weights, taken.actual)
    fixed = constants(rule, state.average.dtype, state.average.device)
    names = data.info.groups or data.info.classes
    row = csv_row(
        epoch,
        len(batches) - 1,
        statistics,
        state.average,
        norm_sq=model_norm_sq(model.parameters()),
        weight_decay=weight_decay,
    )
    return {"row": row, "text": log_text(statistics, state, state.average + fixed.reference, names)}
