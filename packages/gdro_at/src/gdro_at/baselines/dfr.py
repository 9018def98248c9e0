"""DFR, last-layer retraining (Kirichenko et al. 2023): a second phase in which only the last linear layer learns anew.

The official ``--is_combine`` in its correct form: the trunk is in evaluation mode and has no gradient, so neither its
weights nor its running statistics move; the layer sees group-balanced draws from one half of the validation images, and
selection should look at the other half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gdro_at.attacks import TrainingAttack
from gdro_at.method import UnitMethod
from robust_core.data import Batch, ImageSet
from robust_core.errors import UserError
from robust_core.losses import accuracy
from robust_core.models import Network, pooled_features
from robust_core.randomness import generator_for
from robust_core.training.method import StepContext, StepResult

__all__ = ["DFR", "balanced_draw", "last_layer", "validation_halves"]


def validation_halves(validation: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """Return two halves of the validation images: the first to train the last layer on, the second to select on.

    They depend on the seed and the split alone, and have equal shares of each group (of each class, without groups); of
    an odd number the first gets one more. Images keep their order. ``UserError`` if the second half is empty.
    """
    strata = (validation.labels if validation.groups is None else validation.groups).cpu()
    order = torch.randperm(len(validation), generator=generator_for(seed, "validation halves"))
    by_stratum = order[strata[order].argsort(stable=True)]
    sizes = torch.bincount(strata)
    begins = sizes.cumsum(0) - sizes
    place = torch.empty_like(order)
    place[by_stratum] = torch.arange(len(order)) - begins[strata[by_stratum]]
    first = 2 * place < sizes[strata]
    device = validation.labels.device
    training, selection = (part.nonzero().squeeze(1).to(device) for part in (first, ~first))
    if not len(selection):
        raise UserError(
            f"--is-combine trains the last layer on half of the validation images of each group and selects on the "
            f"others, but no group has two (images in all: {len(validation)}); take more validation images."
        )
    return validation.subset(training), validation.subset(selection)


def balanced_draw(units: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return ``size`` positions drawn with replacement, int64, on the CPU: every present unit is equally likely.

    ``units`` int64 ``(n,)`` on the CPU; ``generator`` of the CPU.
    """
    counts = torch.bincount(units)
    return torch.multinomial(1.0 / counts[units].double(), size, replacement=True, generator=generator)


def last_layer(model: nn.Module) -> nn.Linear:
    """Return the linear layer that ends the network.

    Raises:
        UserError: if the head is not pooling and one linear layer.
    """
    return _split(model)[1]


def _split(model: nn.Module) -> tuple[Network, nn.Linear]:
    head = model.pooled_head() if isinstance(model, Network) else None
    if head is None or not isinstance(model, Network):
        raise UserError(
            f"The last layer of {type(model).__name__} cannot be trained anew, because its head is not pooling and one "
            "linear layer; take another --model, such as resnet50."
        )
    return model, head.linear


@dataclass
class DFR(UnitMethod):
    """The second phase: cross-entropy of the last layer on unit-balanced draws, natural or, with an attack, attacked.

    It ignores the training images and takes as many images as the loop's batch has from the first of
    :func:`validation_halves` of the context's validation images, which must be the whole split. At the phase's first
    step the layer is initialised anew from the seed. The attack runs on the whole network.
    """

    attack: TrainingAttack | None = None
    fresh_optimizer: bool = field(default=True, init=False, repr=False)
    begun: bool = field(default=False, init=False, repr=False)
    half: ImageSet | None = field(default=None, init=False, repr=False)
    half_units: Tensor | None = field(default=None, init=False, repr=False)

    def refresh(self, data: ImageSet, context: StepContext) -> Mapping[str, float]:
        """Refuse what cannot be done before the first step."""
        del data
        self._images(context)
        return {}

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> StepResult:
        """Return the loss of a draw; only the last layer gets a gradient. Leaves the model in evaluation mode."""
        network, linear = _split(model)
        if not self.begun:
            _initialise(linear, context.seed)
            context.view.refresh()
            self.begun = True
        model.eval()
        images, labels = self._draw(batch, context)
        if self.attack is not None:
            images = self.attack(images, labels, context)
        with torch.no_grad(), _training_precision(images, context):
            features = pooled_features(network, images)
        logits = linear(features.to(linear.weight.dtype))
        loss = F.cross_entropy(logits, labels)
        name = "natural_accuracy" if self.attack is None else "adversarial_accuracy"
        return StepResult(loss, {name: accuracy(logits, labels)})

    def _images(self, context: StepContext) -> tuple[ImageSet, Tensor]:
        """Return the images to draw from, and their units on the CPU."""
        if self.half is None or self.half_units is None:
            if context.validation is None or len(context.validation) == 0:
                raise UserError(
                    f"{self.name} trains the last layer on validation images, but there are none: take --validation N "
                    "above 0."
                )
            self.half, _ = validation_halves(context.validation, context.seed)
            self.half_units = self.units_of(self.half).cpu()
        return self.half, self.half_units

    def _draw(self, batch: Batch, context: StepContext) -> tuple[Tensor, Tensor]:
        """Return this process's images and labels of a draw for the global batch."""
        half, units = self._images(context)
        generator = generator_for(context.seed, "last layer draw", context.epoch, context.step)
        drawn = balanced_draw(units, context.global_size, generator)[slice(*context.rows)]
        positions = drawn.to(batch.labels.device, non_blocking=True)
        return half.pixels(positions), half.labels[positions]

    def state_dict(self) -> dict[str, Any]:
        """Return the training counts and whether the layer was initialised."""
        return {**super().state_dict(), "begun": self.begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self.begun = state["begun"]


def _training_precision(images: Tensor, context: StepContext) -> torch.autocast:
    reduced = context.train_dtype != torch.float32
    return torch.autocast(images.device.type, dtype=context.train_dtype, enabled=reduced)


@torch.no_grad()
def _initialise(linear: nn.Linear, seed: int) -> None:
    """Initialise as torch does: uniform in ``+-1 / sqrt(inputs)``."""
    bound = linear.in_features**-0.5
    generator = generator_for(seed, "last layer")
    for parameter in (linear.weight, linear.bias):
        if parameter is not None:
            drawn = torch.rand(parameter.shape, generator=generator)
            parameter.copy_((2.0 * drawn - 1.0) * bound)
