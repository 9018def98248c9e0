"""Members that attack with the help of other networks, or of training images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robust_core import attacks
from robust_core.attacks.mma import wrong_classes
from robust_core.attacks.objectives import PerImage
from robust_core.data.types import ImageSet
from robust_core.errors import UserError
from robust_core.evaluation.members import AttackCall, MemberUnavailable, Runner
from robust_core.models import frozen, pooled_features

__all__ = ["feature_runner", "transfer_runner"]

BATCH = 256


def transfer_runner(sources: Mapping[str, Callable[[Tensor], Tensor]]) -> Runner:
    """Return the runner of members that attack another network and try the iterates on this one.

    ``sources`` are networks in evaluation mode by name. Settings of such a member: ``source``, ``eps``, ``steps``
    and ``loss`` of APGD, ``restarts``; ``source_weights`` (``weights_digest``), so that another network of the same
    name is another member.
    """
    views = {name: frozen(source) for name, source in sources.items()}

    def run(call: AttackCall) -> Tensor:
        settings = dict(call.settings)
        name = settings.pop("source")
        settings.pop("source_weights", None)  # by which records tell sources of one name apart
        if name not in views:
            raise MemberUnavailable(
                f"no network '{name}' to transfer from was given: train one, and name it."
            )
        return attacks.apgd(
            call.network.through(views[name], views[name]),
            call.images,
            call.labels,
            early_stop=call.standing,
            observe=call.observe,
            generator=call.generator(),
            **settings,
        )

    return run


def feature_runner(references: ImageSet | None) -> Runner:
    """Return the runner of members that move an image's pooled features to those of training images.

    For each of the ``targets`` wrong classes with the largest natural logits: towards the nearest of the
    ``references`` of that class, by APGD on the squared distance of what the network's last linear layer sees.
    Settings of such a member: ``eps``, ``steps``, ``targets``.
    """
    bank: list[tuple[Any, Tensor, Tensor]] = []

    def features_of(view: Any) -> tuple[Tensor, Tensor]:
        if references is None:
            raise MemberUnavailable("no training images were given: name their folder.")
        for known, features, classes in bank:
            if known is view:
                return features, classes
        try:
            found = [pooled_features(view, _pixels(references, first, view)) for first in _firsts(references)]
        except UserError as error:
            raise MemberUnavailable(str(error)) from error
        # one network at a time: the view is kept, so that no other can take its place in memory
        bank[:] = [(view, torch.cat(found), references.labels.to(found[0].device))]
        return bank[0][1:]

    def run(call: AttackCall) -> Tensor:
        view: Any = call.network.view
        with torch.no_grad():
            features, classes = features_of(view)
            own = call.network.passing(partial(pooled_features, view), call.images)
            logits = call.network(call.images)
        count = min(int(call.settings["targets"]), logits.shape[1] - 1)
        apart, result = torch.cdist(own, features), call.images.clone()
        for position, column in enumerate(wrong_classes(logits, call.labels, count).flip(1).t()):
            distances = apart.masked_fill(classes[None] != column[:, None], torch.inf)
            # of a class without references there is nothing to move to
            rows = distances.isfinite().any(dim=1).nonzero()[:, 0]
            if not len(rows):
                continue
            part = call.part(rows)
            result[rows] = attacks.apgd(
                call.network.through(partial(pooled_features, view)),
                part.images,
                part.labels,
                eps=call.settings["eps"],
                steps=call.settings["steps"],
                loss=PerImage(_nearness, (features[distances[rows].argmin(dim=1)],)),
                early_stop=part.standing,
                observe=part.observe,
                generator=call.generator(position),
            )
        return result

    return run


def _nearness(features: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    del labels
    return -(features - targets).square().sum(dim=1)


def _firsts(references: ImageSet) -> range:
    return range(0, len(references), BATCH)


def _pixels(references: ImageSet, first: int, view: Any) -> Tensor:
    device = next((buffer.device for buffer in (*view.parameters(), *view.buffers())), torch.device("cpu"))
    return references.pixels(slice(first, first + BATCH)).to(device, view.out_dtype)
