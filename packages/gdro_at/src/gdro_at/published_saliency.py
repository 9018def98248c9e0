"""The saliency pictures of the official code, exactly, faults included (the golden README, section ``gradcam``).

The robust saliency uses training mode, one image at a time, the gradient of one forward pass with the activations of
another, and moves the running statistics: it is exempt from the promise that nothing of the model changes. The maps are
divided by their range without a guard, so a constant one is NaN everywhere. The plain definitions are in
:mod:`gdro_at.saliency`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gdro_at.saliency import channel_means, enlarged, weighted_map
from gdro_at.tap import TappedNetwork

__all__ = [
    "PublishedSaliency",
    "published_attack_saliency",
    "published_jet",
    "published_natural_cam",
    "published_natural_cam_pp",
    "published_overlay",
]

PUBLISHED_PP_SIZE = 224


class PublishedSaliency(NamedTuple):
    """What the official ``GradCAM`` gives of a batch, all detached."""

    maps: Tensor  # (N, H, W), in [0, 1] or NaN
    raw: Tensor  # (N, h, w): sum_k alpha_k A_k, before the relu
    weights: Tensor  # (N, K): alpha
    scores: Tensor  # (N,): sum KL(p_3(x) || p_2(x_adv))
    predictions: Tensor  # (N,): of the first forward pass, in training mode


def published_attack_saliency(
    model: nn.Module, images: Tensor, adversarial: Tensor, layer: str
) -> PublishedSaliency:
    """Return the official robust saliency of images ``(N, 3, H, W)`` and their attacked ones, one after the other.

    Of each image: the forward passes x, x_adv, x in training mode, each with the statistics of that single image;
    ``alpha`` is the mean gradient of ``KL(p_3(x) || p_2(x_adv))`` with respect to the layer's output in pass 2, the
    activations are those of pass 3. Not class specific. **The model is left in training mode, its running statistics
    moved three times an image**, so the order of images counts. Directly before a batch norm ``alpha`` is rounding
    noise. The official attack (TRADES' from the clean image itself) is not part of it: there rounding decides.

    Raises:
        UserError: for an unknown layer or one without a map.
    """
    model.train()
    network = TappedNetwork(model, layer, training=True)
    found = []
    for image, attacked in zip(images.split(1), adversarial.split(1), strict=True):
        first, _ = network(image)
        second, tapped = network(attacked)
        third, activations = network(image)
        reference = F.log_softmax(third.detach(), dim=1)
        scores = (reference.exp() * (reference - F.log_softmax(second, dim=1))).sum(dim=1)
        weights = channel_means(scores, tapped)
        raw = torch.einsum("nk,nkhw->nhw", weights, activations.detach())
        maps = _scaled(enlarged(F.relu(raw), images.shape[2:]))
        found.append(PublishedSaliency(maps, raw, weights, scores.detach(), first.detach().argmax(dim=1)))
    return PublishedSaliency(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def published_natural_cam(
    model: nn.Module, images: Tensor, classes: Tensor, layer: str
) -> tuple[Tensor, Tensor]:
    """Return the official natural maps ``(N, H, W)`` (class ``GradCAM2``) and ``alpha`` ``(N, K)``, in evaluation mode.

    Plain Grad-CAM of the logit of each image's class ``(N,)``; a constant map is NaN. The model is not changed.
    """
    logits, activations = TappedNetwork(model, layer)(images)
    weights = channel_means(logits.gather(1, classes.unsqueeze(1)), activations)
    return _scaled(enlarged(weighted_map(weights, activations), images.shape[2:])), weights


def published_natural_cam_pp(
    model: nn.Module, images: Tensor, classes: Tensor, layer: str, size: int = PUBLISHED_PP_SIZE
) -> Tensor:
    """Return the official Grad-CAM++ maps ``(N, size, size)`` in evaluation mode, whatever the images' size.

    ``a = G^2 / (D + 1e-7)`` with ``D = 2 G^2 + sum(A G^3)``, 1 where that is 0, and ``w_k = sum(a relu(exp(S) G))``.
    A constant map is NaN. The model is not changed.
    """
    logits, activations = TappedNetwork(model, layer)(images)
    scores = logits.gather(1, classes.unsqueeze(1)).squeeze(1)
    (gradient,) = torch.autograd.grad(scores.sum(), activations)
    scores, activations = scores.detach(), activations.detach()
    squares = gradient.square()
    divisor = 2 * squares + (activations * gradient**3).sum(dim=(2, 3), keepdim=True)
    shares = squares / (torch.where(divisor != 0, divisor, torch.ones_like(divisor)) + 1e-7)
    weights = (shares * F.relu(scores.exp().view(-1, 1, 1, 1) * gradient)).sum(dim=(2, 3))
    return _scaled(enlarged(weighted_map(weights, activations), (size, size)))


def published_overlay(masks: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the official pictures of masks ``(N, H, W)`` in [0, 1]: heat maps uint8 and overlays, ``(N, 3, H, W)``.

    Heat is the JET colour ``floor(255 mask)``, red green blue; the overlay is ``heat / 255 + image`` divided by its
    largest value in the picture. NaN takes the colour of 0, as numpy's cast commonly does.
    """
    index = (masks.float() * 255.0).nan_to_num(nan=0.0).floor().long()
    heat = published_jet().to(masks.device)[index].permute(0, 3, 1, 2)
    result = heat.float() / 255.0 + images.float()
    return heat, result / result.amax(dim=(1, 2, 3), keepdim=True)


@lru_cache(maxsize=1)
def published_jet() -> Tensor:
    """Return OpenCV's JET table, uint8 ``(256, 3)``: red, green, blue; cached, do not write to it."""
    level = 4 * torch.arange(256)
    red = torch.minimum(level - 382, 1148 - level)
    green = torch.minimum(level - 128, 892 - level)
    blue = torch.minimum(level + 128, 638 - level)
    table = torch.stack([red, green, blue], dim=1).clamp(0, 255)
    table[159, 2] = 1  # the one entry that OpenCV's own rounding puts off the line
    return table.to(torch.uint8)


def _scaled(maps: Tensor) -> Tensor:
    """Return each map shifted and divided by its range, 0 / 0 included."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low)
