"""Class activation maps: where in the image a class's logit comes from. Batched, without hooks.

With ``A`` an image's feature map ``(K, h, w)`` and ``G = d z_c / d A`` the gradient of the class's logit:

* Grad-CAM (Selvaraju et al. 2017): ``relu(sum_k mean(G_k) A_k)``
* XGrad-CAM (Fu et al. 2020): ``relu(sum_k [sum(G_k A_k) / sum(A_k)] A_k)``
* Layer-CAM (Jiang et al. 2021): ``relu(sum_k relu(G_k) A_k)``

Where the head is (norm, relu,) pooling and a linear layer, ``G`` is written down instead of computed by
autograd: the classifier's weights, spread over the pooling window, times the norm's scale where the relu is
open.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_core.errors import UserError, unknown_name
from robust_core.models import FrozenView, PooledHead, frozen

__all__ = [
    "CAM_METHODS",
    "CamResult",
    "cam_of_features",
    "class_activation_map",
    "feature_gradient",
    "normalize_map",
]

CAM_METHODS = ("gradcam", "xgradcam", "layercam")


class CamResult(NamedTuple):
    """What one natural pass gives: raw maps, not negative, and what they were computed from, all detached."""

    maps: Tensor  # (N, h, w)
    logits: Tensor  # (N, classes)
    features: Tensor  # (N, K, h, w)
    classes: Tensor  # (N,)


def class_activation_map(
    model: nn.Module, images: Tensor, *, method: str = "gradcam", classes: Tensor | None = None
) -> CamResult:
    """Return the class activation map of each image ``(N, C, H, W)``, in evaluation mode.

    ``classes`` ``(N,)`` are the classes to explain, by default the predicted ones. A module is copied to a
    frozen view first, so nothing of it changes; give a ``FrozenView`` to save that copy. Raises ``UserError``
    for an unknown method, classes out of range, or a model without ``forward_features``.
    """
    if method not in CAM_METHODS:
        raise unknown_name("class activation map", method, CAM_METHODS)
    view = _view_of(model)
    with torch.no_grad():
        logits, features = view.logits_and_features(images)
    if classes is None:
        classes = logits.argmax(dim=1)
    else:
        _check_classes(classes, logits)
    return CamResult(_maps(view, features, method, classes), logits, features, classes)


def cam_of_features(
    model: nn.Module,
    features: Tensor,
    logits: Tensor,
    *,
    method: str = "gradcam",
    classes: Tensor | None = None,
) -> Tensor:
    """Return raw maps ``(N, h, w)`` from the features and logits of a pass that was made anyway.

    ``classes`` are the predicted ones by default; they are not checked.
    """
    if method not in CAM_METHODS:
        raise unknown_name("class activation map", method, CAM_METHODS)
    return _maps(_view_of(model), features, method, logits.argmax(dim=1) if classes is None else classes)


def feature_gradient(model: nn.Module, features: Tensor, classes: Tensor) -> Tensor:
    """Return ``d z_c / d A``, broadcastable to the features ``(N, K, h, w)``, for the class of each image."""
    view = _view_of(model)
    head = view.pooled_head()
    if head is not None:
        with torch.no_grad():
            return _closed_form(head, features, classes)
    with torch.enable_grad():
        leaf = features.detach().requires_grad_()
        chosen = view.forward_head(leaf).gather(1, classes.unsqueeze(1)).sum()
        return torch.autograd.grad(chosen, leaf)[0]


def normalize_map(maps: Tensor) -> Tensor:
    """Return each map ``(N, h, w)`` shifted and scaled to ``[0, 1]``; a constant map becomes zeros."""
    shifted = maps - maps.amin(dim=(1, 2), keepdim=True)
    largest = shifted.amax(dim=(1, 2), keepdim=True)
    return torch.where(largest > 0, shifted / largest, torch.zeros_like(shifted))


def _view_of(model: nn.Module) -> FrozenView:
    view = frozen(model)
    if isinstance(view, FrozenView):
        return view
    raise UserError(
        "A class activation map needs the network itself, not a function of images; "
        "give a network of robust_core.models."
    )


def _check_classes(classes: Tensor, logits: Tensor) -> None:
    images, count = logits.shape
    if classes.shape != (images,) or classes.is_floating_point():
        raise UserError(
            f"classes has the shape {tuple(classes.shape)} and type {classes.dtype}; "
            f"give {images} integers, one per image."
        )
    if images and (int(classes.min()) < 0 or int(classes.max()) >= count):
        raise UserError(
            f"classes reach from {int(classes.min())} to {int(classes.max())}; "
            f"the model has the classes 0 to {count - 1}, give one of them per image."
        )


def _closed_form(head: PooledHead, features: Tensor, classes: Tensor) -> Tensor:
    number, channels, height, width = features.shape
    rows = head.linear.weight[classes].to(features.dtype)
    if head.pool is None:
        gradient = rows.view(number, channels, 1, 1) / (height * width)
    else:
        side = head.pool
        rows = rows.view(number, channels, height // side, width // side) / side**2
        gradient = rows.repeat_interleave(side, 2).repeat_interleave(side, 3)
        # Pooling leaves out what its window does not fill.
        gradient = F.pad(gradient, (0, width % side, 0, height % side))
    if head.norm is not None:
        gradient = gradient * cast(Tensor, head.norm.weight).view(1, -1, 1, 1)
    if head.relu:
        opened = features if head.norm is None else head.norm(features)
        gradient = torch.where(opened > 0, gradient, torch.zeros_like(gradient))
    return gradient


def _maps(view: FrozenView, features: Tensor, method: str, classes: Tensor) -> Tensor:
    features = features.detach()
    gradient = feature_gradient(view, features, classes)
    with torch.no_grad():
        if method == "layercam":
            return F.relu((F.relu(gradient) * features).sum(dim=1))
        if method == "gradcam":
            weights = gradient.mean(dim=(2, 3))
        else:
            weights = (gradient * features).sum(dim=(2, 3)) / features.sum(dim=(2, 3))
            # A channel that sums to zero has no weight; it is left out, as published.
            weights = torch.where(weights.isfinite(), weights, torch.zeros_like(weights))
        return F.relu(torch.einsum("nk,nkhw->nhw", weights, features))
