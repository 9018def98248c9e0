"""The networks of ``run_expt.py`` by name: torchvision's ResNets, the official ``pre18``, and those of the core.

The plain names ``resnet18``, ``resnet34``, ``resnet50`` and ``wideresnet50`` mean torchvision's networks with the 7x7
stem; names with a width (``resnet18-w16``) and all others are the core's, with the stem for small images.
"""

from __future__ import annotations

import http.client
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from gdro_at.pre18 import PreActResNet18
from robust_core.errors import UserError, unknown_name
from robust_core.models import (
    Network,
    PooledHead,
    build_model,
    check_model_name,
    list_models,
    load_state,
    read_state_dict,
)
from robust_core.randomness import seeded

__all__ = ["TORCHVISION_NAMES", "TorchvisionResNet", "build_network", "check_name", "list_names"]

TORCHVISION_NAMES = {
    "resnet18": ("resnet18", "ResNet18_Weights"),
    "resnet34": ("resnet34", "ResNet34_Weights"),
    "resnet50": ("resnet50", "ResNet50_Weights"),
    "wideresnet50": ("wide_resnet50_2", "Wide_ResNet50_2_Weights"),
}
"""Our name: torchvision's builder and its weights."""

_OWN = (*TORCHVISION_NAMES, "pre18")
_UNRECOGNISED = ("inception_v3", "raw_logistic_regression")
_STAGES = ("layer1", "layer2", "layer3", "layer4")
_HEADS = ("fc", "linear")
_SIZES = {"num_classes": (1, 1_000_000), "image_size": (8, 2048)}


class TorchvisionResNet(Network):
    """A ResNet of torchvision (its own modules and names) whose first layer is the normalisation.

    ``forward_features`` returns the last stage's output, behind its relu; the head is ``fc`` on the mean of the map.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        *,
        image_size: int = 224,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        # Here and not above: it takes seconds, and only these networks need it.
        from torchvision import models

        super().__init__(name, num_classes, image_size=image_size, mean=mean, std=std)
        builder, _ = TORCHVISION_NAMES[name]
        theirs: nn.Module = getattr(models, builder)(weights=None, num_classes=num_classes)
        for key in ("conv1", "bn1", "maxpool", *_STAGES, "fc"):
            self.add_module(key, theirs.get_submodule(key))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last stage's output ``(N, K, h, w)``, not negative; 7x7 at 224 pixels."""
        stem = self.get_submodule("conv1")(self.normalize(images))
        out: Tensor = F.relu(self.get_submodule("bn1")(stem), inplace=True)
        for name in ("maxpool", *_STAGES):
            out = self.get_submodule(name)(out)
        return out

    def pooled_head(self) -> PooledHead:
        """Return the head: global average pooling and ``fc``."""
        return PooledHead(norm=None, relu=False, pool=None, linear=cast(nn.Linear, self.get_submodule("fc")))

    def conv_norm_pairs(self) -> list[tuple[str, str]]:
        """Return all (convolution, batch norm) pairs; every norm follows a convolution here."""
        found = [("conv1", "bn1")]
        for stage in _STAGES:
            for number, block in self.get_submodule(stage).named_children():
                prefix = f"{stage}.{number}"
                for name, _ in block.named_children():
                    if name.startswith("conv"):
                        found.append((f"{prefix}.{name}", f"{prefix}.bn{name.removeprefix('conv')}"))
                    elif name == "downsample":
                        found.append((f"{prefix}.downsample.0", f"{prefix}.downsample.1"))
        return found


def list_names() -> list[str]:
    """Return names that :func:`build_network` accepts; any width ``-wN`` and any ``wrn-D-K`` exist besides.

    >>> "pre18" in list_names() and "resnet18-w16" in list_names()
    True
    """
    return sorted({*_OWN, *list_models()})


def check_name(name: str) -> None:
    """Refuse a network that :func:`build_network` does not know, without building anything.

    Raises:
        UserError: with the nearest name; for the official names that never worked, and for text, with the reason.
    """
    if name in _UNRECOGNISED:
        raise UserError(
            f"Model '{name}' is a published flag value that the official code does not recognise either; "
            f"use one of {', '.join(_OWN)}."
        )
    if name.startswith("bert"):
        raise UserError(
            f"Model '{name}' reads text, and text (MultiNLI) is out of scope here; use a network for images such as "
            "resnet50."
        )
    if name in _OWN:
        return
    try:
        check_model_name(name)
    except UserError as error:
        # the core's list lacks the names of this package; a width beyond all bounds it tells better
        raise (
            unknown_name("model", name, list_names()) if str(error).startswith("Unknown") else error
        ) from None


def build_network(
    name: str,
    num_classes: int,
    *,
    image_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    seed: int,
    weights: str | Path = "scratch",
) -> Network:
    """Return a network for images ``(N, 3, image_size, image_size)`` in ``[0, 1]``, in training mode.

    What ``weights`` do not give is initialised from ``seed`` as torchvision (or the core) does, and the global random
    state stays as it is. With ``mean`` and ``std`` (three numbers each) normalisation is the first layer.

    Args:
        name: one of :func:`list_names`; the core's networks take multiples of 32 pixels.
        weights: ``scratch``; ``imagenet``: torchvision's first version, fetched by torchvision, whose head is replaced
            by a new one (``pre18`` is never pretrained, as published, and starts from scratch); or the path of a state
            dict, read without executing anything, whose head is left out if its shape differs.

    Raises:
        UserError: for an unknown name, an impossible size, no ImageNet weights of that network or no way to fetch
            them, or a file of another architecture.
    """
    check_name(name)
    for what, value in (("num_classes", num_classes), ("image_size", image_size)):
        low, high = _SIZES[what]
        given: Any = value
        if type(given) is not int or not low <= value <= high:
            raise UserError(f"{what} is {value!r}, expected a whole number from {low} to {high}.")
    if (mean is None) != (std is None):
        raise UserError("Normalisation needs both mean and std; give both or neither.")
    if weights == "imagenet" and name not in _OWN:
        raise UserError(
            f"There are no ImageNet weights of '{name}'; train it anew with --train_from_scratch, give weights of it "
            f"with --pretrained PATH, or use one of {', '.join(TORCHVISION_NAMES)}."
        )
    network = _fresh(name, num_classes, image_size=image_size, mean=mean, std=std, seed=seed)
    if weights == "imagenet" and name in TORCHVISION_NAMES:
        _load_all_but_head(network, _imagenet_state(name), source="The file of ImageNet weights", always=True)
    elif weights not in ("scratch", "imagenet"):
        _load_all_but_head(network, read_state_dict(weights), source=str(weights), always=False)
    return network


def _fresh(name: str, num_classes: int, *, seed: int, **settings: Any) -> Network:
    if name not in _OWN:
        return build_model(name, num_classes, seed=seed, **settings)
    builder: Callable[..., Network] = PreActResNet18 if name == "pre18" else TorchvisionResNet
    with seeded(seed):
        return builder(name, num_classes, **settings)


def _imagenet_state(name: str) -> dict[str, Tensor]:
    from torchvision import models

    _, kind = TORCHVISION_NAMES[name]
    weights = getattr(models, kind).IMAGENET1K_V1
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    # no network; another hash (RuntimeError); a file in torch's cache that is cut short (of many types)
    except (OSError, http.client.HTTPException, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"The ImageNet weights of '{name}' could not be fetched ({reason}); give a file of them with "
            "--pretrained PATH, or start without any with --train_from_scratch."
        ) from None
    return state


def _load_all_but_head(network: Network, state: dict[str, Tensor], *, source: str, always: bool) -> None:
    """Load a state dict in place; the network keeps its own head ``always``, else if the shapes differ."""
    head = cast(PooledHead, network.pooled_head()).linear
    own = next(name for name, module in network.named_modules() if module is head)
    # the core's ResNets call their head 'linear' and know the other name as an alias
    theirs = next((word for word in _HEADS if f"{word}.weight" in state), own)
    weight = state.get(f"{theirs}.weight")
    if weight is not None and (always or weight.shape != head.weight.shape):
        kept = {key: value for key, value in state.items() if not key.startswith(f"{theirs}.")}
        state = {**kept, **{f"{own}.{key}": value for key, value in head.state_dict().items()}}
    load_state(network, state, source=source)
