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

import math
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_core.errors import UserError, unknown_name
from robust_core.models import FrozenView, Network, PooledHead, frozen

__all__ = [
    "CAM_METHODS",
    "CamResult",
    "cam_of_features",
    "cam_of_images",
    "check_channels",
    "check_pixels",
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
    for images that are not float in [0, 1] or do not fit the network, an unknown method, classes out of
    range, or a model without ``forward_features``.
    """
    _check_method(method)
    view = _view_of(model)
    check_pixels(images)
    return cam_of_images(view, images, method=method, classes=classes)


def cam_of_images(
    model: nn.Module, images: Tensor, *, method: str = "gradcam", classes: Tensor | None = None
) -> CamResult:
    """Return what :func:`class_activation_map` does, without its look at the pixels.

    The core for training: it reads nothing back from the device unless ``classes`` are given.
    """
    _check_method(method)
    view = _view_of(model)
    check_channels(view, images)
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
    _check_method(method)
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
    """Return each map ``(N, h, w)`` shifted and scaled to ``[0, 1]``; a constant map becomes zeros.

    Raises ``UserError`` for anything but a batch of maps.
    """
    if not isinstance(maps, Tensor) or maps.dim() != 3 or 0 in maps.shape[1:] or maps.is_complex():
        raise UserError(
            f"The maps are {_found(maps)}, expected a tensor (N, h, w): give one map as maps[None], "
            "without a channel axis."
        )
    shifted = maps - maps.amin(dim=(1, 2), keepdim=True)
    largest = shifted.amax(dim=(1, 2), keepdim=True)
    return torch.where(largest > 0, shifted / largest, torch.zeros_like(shifted))


def check_pixels(images: Tensor) -> None:
    """Refuse what is not float32 or float64 images ``(N, ...)`` in [0, 1]; none at all are allowed.

    The values are read back from the device, once.
    """
    given: Any = images
    if not isinstance(given, Tensor) or given.dim() < 2:
        raise UserError(f"The images are {_found(given)}: give a tensor (N, C, H, W).")
    if images.dtype == torch.uint8:
        raise UserError("The images are uint8: give float32 in [0, 1] (images.float() / 255).")
    if images.dtype not in (torch.float32, torch.float64):
        raise UserError(f"The images are {images.dtype}: pixels are float32 or float64 (images.float()).")
    if images.numel() == 0:
        return
    low, high = (float(bound) for bound in torch.stack(images.detach().aminmax()).tolist())
    if math.isnan(low) or math.isnan(high):
        raise UserError("The images hold NaN: every pixel must be a number in [0, 1].")
    if low < 0.0 or high > 1.0:
        if low >= 0.0 and high > 2.0:
            remedy = "divide 8-bit images by 255"
        else:
            remedy = "give images that are not normalised; normalisation is the first layer of the model"
        raise UserError(f"The images lie in [{low:.4g}, {high:.4g}], expected [0, 1]: {remedy}.")


def check_channels(network: object, images: Tensor) -> None:
    """Refuse images that a network of the core cannot take; what others take only they know."""
    if not isinstance(network, FrozenView) or not isinstance(network.network, Network):
        return
    if images.dim() != 4 or images.shape[1] != 3:
        raise UserError(
            f"The images have shape {tuple(images.shape)}, but {network.network.name} takes (N, 3, H, W): "
            "give colour images, a grey channel three times over (images.expand(-1, 3, -1, -1))."
        )


def _found(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _check_method(method: str) -> None:
    if method not in CAM_METHODS:
        raise unknown_name("class activation map", str(method), CAM_METHODS)


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
    given: Any = classes
    if not isinstance(given, Tensor):
        raise UserError(
            f"classes is {type(given).__name__}; give {images} integers, one per image, as a tensor."
        )
    if classes.shape != (images,) or classes.dtype not in (torch.int64, torch.int32):
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
