"""Where an attack, or a class, acts in an image: the plain definitions, batched and in evaluation mode.

With ``A`` a layer's output ``(K, h, w)`` of one forward pass, ``S`` a score of that pass's logits and ``G = dS/dA``:

* Grad-CAM (Selvaraju et al. 2017): ``relu(sum_k mean(G_k) A_k)`` with ``S`` the class's logit;
* Grad-CAM++ (Chattopadhay et al. 2018): ``relu(sum_k w_k A_k)``, ``w_k = sum(a_k relu(G_k))``,
  ``a = G^2 / (2 G^2 + sum(A_k G_k^3))``;
* the saliency of an attack: Grad-CAM with the robust loss of the attacked image as ``S``.

Each map is enlarged to the image's size (bilinear, half-pixel centres) and shifted and scaled to [0, 1]; a map without
positive part, or a constant one, is all zeros. How the published definitions differ: :mod:`gdro_at.published_saliency`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gdro_at.tap import TappedNetwork
from robust_core.cam import check_pixels, normalize_map
from robust_core.errors import UserError

__all__ = [
    "Saliency",
    "attack_saliency",
    "channel_means",
    "enlarged",
    "grad_cam",
    "grad_cam_pp",
    "weighted_map",
]


class Saliency(NamedTuple):
    """Maps of a batch and what they were made of, all detached."""

    maps: Tensor  # (N, H, W), in [0, 1], of the images' size
    raw: Tensor  # (N, h, w), not negative, of the layer's size
    weights: Tensor  # (N, K), of the layer's channels
    scores: Tensor  # (N,): what was differentiated
    logits: Tensor  # (N, classes), of the pass whose activations are shown


def attack_saliency(
    model: nn.Module, images: Tensor, adversarial: Tensor, layer: str, labels: Tensor | None = None
) -> Saliency:
    """Return where the attacked images ``(N, 3, H, W)`` raise the robust loss: its Grad-CAM, in evaluation mode.

    Differentiated, with respect to the layer's output in the forward pass of ``adversarial``, is the score of each
    image ``x`` with attacked image ``x'``:

    * without ``labels``: ``KL(p(x) || p(x'))``, in which ``p(x)`` is a constant;
    * with ``labels`` ``(N,)``: ``log p_y(x) - log p_y(x')``, what the attack took from the log-probability of class y.

    Activations and gradient are of that one pass, so the map shows what in ``x'`` speaks for the change. Where ``x'``
    equals ``x``, the divergence has its minimum and the map without labels is exactly zero. Nothing of the model is
    changed; no hook is used.

    Raises:
        UserError: for pixels outside of [0, 1], other shapes, an unknown layer or one without a map, bad labels.
    """
    _check_images(images)
    _check_images(adversarial, "The attacked images")
    if adversarial.shape != images.shape:
        raise UserError(
            f"The attacked images have shape {tuple(adversarial.shape)}, the natural ones {tuple(images.shape)}: "
            "give the attacked images of the same batch."
        )
    network = TappedNetwork(model, layer)
    natural = F.log_softmax(network(images)[0].detach(), dim=1)
    logits, activations = network(adversarial)
    attacked = F.log_softmax(logits, dim=1)
    if labels is None:
        scores = (natural.exp() * (natural - attacked)).sum(dim=1)
    else:
        _check_classes(labels, logits, "labels")
        scores = (natural - attacked).gather(1, labels.long().unsqueeze(1)).squeeze(1)
    weights = channel_means(scores, activations)
    if labels is None:
        # the gradient there is rounding noise, which the scaling would blow up to a picture
        moved = (adversarial != images).flatten(1).any(dim=1)
        weights = torch.where(moved.unsqueeze(1), weights, torch.zeros_like(weights))
    return _result(weights, activations, scores, logits, images)


def grad_cam(model: nn.Module, images: Tensor, classes: Tensor, layer: str) -> Saliency:
    """Return the Grad-CAM of the logit of each image's class ``(N,)`` at a layer, in evaluation mode.

    ``images`` ``(N, 3, H, W)`` in [0, 1], natural or attacked. Nothing of the model is changed.

    Raises:
        UserError: for pixels outside of [0, 1], an unknown layer or one without a map, bad classes.
    """
    logits, activations, scores = _class_scores(model, images, classes, layer)
    return _result(channel_means(scores, activations), activations, scores, logits, images)


def grad_cam_pp(model: nn.Module, images: Tensor, classes: Tensor, layer: str) -> Saliency:
    """Return the Grad-CAM++ of the logit of each image's class ``(N,)`` at a layer, in evaluation mode.

    The factor ``exp(S)`` of the paper's weights is left out: it is one number per image, which the scaling to [0, 1]
    takes away, and overflows for large logits. ``a`` is 0 where its divisor is; no constant is added to the divisor.
    In float64 from the gradient on. Arguments and errors as :func:`grad_cam`.
    """
    logits, activations, scores = _class_scores(model, images, classes, layer)
    (gradient,) = torch.autograd.grad(scores.sum(), activations)
    gradient, values = gradient.double(), activations.detach().double()
    squares = gradient.square()
    divisor = 2 * squares + (values * gradient**3).sum(dim=(2, 3), keepdim=True)
    shares = torch.where(divisor != 0, squares / divisor, torch.zeros_like(divisor))
    weights = (shares * F.relu(gradient)).sum(dim=(2, 3))
    raw = weighted_map(weights, values)
    # back in single precision only as maps in [0, 1]
    maps = normalize_map(enlarged(raw, images.shape[2:])).to(images.dtype)
    return Saliency(maps, raw, weights, scores.detach(), logits.detach())


def channel_means(scores: Tensor, activations: Tensor) -> Tensor:
    """Return the mean over the positions of the gradient of the scores, ``(N, K)``."""
    (gradient,) = torch.autograd.grad(scores.sum(), activations)
    return gradient.mean(dim=(2, 3))


def weighted_map(weights: Tensor, activations: Tensor) -> Tensor:
    """Return ``relu(sum_k w_k A_k)`` ``(N, h, w)`` of weights ``(N, K)`` and activations ``(N, K, h, w)``."""
    return F.relu(torch.einsum("nk,nkhw->nhw", weights, activations.detach()))


def enlarged(raw: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor:
    """Return maps ``(N, h, w)`` brought to a size, bilinear with half-pixel centres."""
    return F.interpolate(raw.unsqueeze(1), size=tuple(size), mode="bilinear", align_corners=False).squeeze(1)


def _class_scores(
    model: nn.Module, images: Tensor, classes: Tensor, layer: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, activations and the logit of each image's class, of one pass."""
    _check_images(images)
    logits, activations = TappedNetwork(model, layer)(images)
    _check_classes(classes, logits, "classes")
    return logits, activations, logits.gather(1, classes.long().unsqueeze(1)).squeeze(1)


def _result(weights: Tensor, activations: Tensor, scores: Tensor, logits: Tensor, images: Tensor) -> Saliency:
    raw = weighted_map(weights, activations)
    maps = normalize_map(enlarged(raw, images.shape[2:]))
    return Saliency(maps.to(images.dtype), raw, weights, scores.detach(), logits.detach())


def _check_images(images: Tensor, name: str = "The images") -> None:
    check_pixels(images)
    if images.dim() != 4:
        raise UserError(f"{name} have shape {tuple(images.shape)}, expected (N, 3, H, W).")


def _check_classes(classes: Tensor, logits: Tensor, name: str) -> None:
    count, known = logits.shape
    if classes.shape != (count,) or classes.is_floating_point():
        raise UserError(
            f"{name} has the shape {tuple(classes.shape)} and type {classes.dtype}; give {count} integers, one per "
            "image."
        )
    if count and not 0 <= int(classes.min()) <= int(classes.max()) < known:
        raise UserError(
            f"{name} reach from {int(classes.min())} to {int(classes.max())}; the network has the classes 0 to "
            f"{known - 1}, give one of them per image."
        )
