"""Who decides: the unmodified model judges every iterate, and every pass through a network is counted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from robust_core.errors import UserError

__all__ = ["CountingNetwork", "Judge", "Through", "check_model", "model_place", "weights_digest"]


class CountingNetwork:
    """A network that counts the images that go through it forward and backward; what attacks are given.

    ``view`` is the network itself (as a rule a frozen view), by which attacks know the layout it computes in.
    """

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        self.view = network
        self.forward_passes = 0
        self.backward_passes = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Return the network's logits ``(N, K)``."""
        return cast(Tensor, self.passing(self.view, images))

    def passing(self, network: Callable[..., Any], images: Tensor, **arguments: Any) -> Any:
        """Return what any ``network`` makes of the images, counted as one pass of each.

        For members that ask for more than logits, or attack another network. The backward pass is counted at the
        first tensor of what is returned.
        """
        found = network(images, **arguments)
        self.forward_passes += len(images)
        first = found
        while not isinstance(first, Tensor):
            first = first[0]
        if first.requires_grad:
            first.register_hook(self._count_backward)
        return found

    def through(self, function: Callable[[Tensor], Tensor], view: object = None) -> Through:
        """Return another function of the images for attacks, its passes counted here.

        ``view``: the network below it (default: this one's), by which attacks know the layout it computes in.
        """
        return Through(self, function, self.view if view is None else view)

    def _count_backward(self, gradient: Tensor) -> None:
        self.backward_passes += len(gradient)


@dataclass(frozen=True)
class Through:
    """A function of images whose passes a :class:`CountingNetwork` counts."""

    counter: CountingNetwork
    function: Callable[[Tensor], Tensor]
    view: object

    def __call__(self, images: Tensor) -> Tensor:
        """Return what the function gives."""
        return cast(Tensor, self.counter.passing(self.function, images))


class Judge:
    """Decides, for one batch and one attack, which images withstood every iterate.

    ``right`` bool ``(n,)`` starts as the verdict at zero perturbation; ``observe`` takes the iterates. An
    iterate with a logit that is not finite counts as broken. An attack that leaves the ball or the box is a
    fault of the attack, not of the model, and raises ``RuntimeError`` in ``verdict``.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        images: Tensor,
        labels: Tensor,
        *,
        right: Tensor,
        eps: float,
        norm: str,
    ) -> None:
        self.model = model
        self.images = images
        self.labels = labels
        self.right = right.clone()
        self.eps = eps
        self.norm = norm
        self.passes = 0
        self._excess = torch.zeros((), dtype=images.dtype, device=images.device)

    def observe(self, iterate: Tensor, rows: Tensor | None = None) -> None:
        """Judge an iterate ``(m, C, H, W)`` of the images at ``rows`` ``(m,)`` of the batch (None: all)."""
        if rows is None:
            rows = torch.arange(len(self.images), device=self.images.device)
        elif rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]
        self._measure(iterate, rows)
        # What has failed once has failed: only images that still stand are judged.
        standing = self.right[rows].nonzero()[:, 0]
        if len(standing):
            rows = rows[standing]
            self.right[rows] = self.correct(iterate[standing], self.labels[rows])

    def standing(self, rows: Tensor) -> Tensor:
        """Return which images at ``rows`` ``(m,)`` no observed iterate has broken, bool ``(m,)``."""
        return self.right[rows]

    def verdict(self, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Judge what the attack returned: bool ``(n,)`` right there, and right at every iterate."""
        self._measure(adversarial, torch.arange(len(self.images), device=self.images.device))
        excess = float(self._excess)
        # Up to the rounding of a length over all pixels; anything else is another budget than the table says.
        if not excess <= 1e-5:
            raise RuntimeError(f"An attack left its ball or [0, 1] by {excess:.3g} (eps {self.eps:.4g}).")
        last = self.correct(adversarial, self.labels)
        return last, self.right & last

    def correct(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return which images the unmodified model classifies right, bool."""
        with torch.no_grad():
            logits = self.model(images.contiguous())
        self.passes += len(images)
        return (logits.argmax(dim=1) == labels) & logits.isfinite().all(dim=1)

    def _measure(self, iterate: Tensor, rows: Tensor) -> None:
        """Note how far an iterate lies outside the ball or the box."""
        iterate = iterate.detach()
        offset = (iterate - self.images[rows]).flatten(1)
        order = 2.0 if self.norm == "l2" else torch.inf
        length = torch.linalg.vector_norm(offset, ord=order, dim=1).amax()
        outside = torch.maximum(-iterate.amin(), iterate.amax() - 1)
        self._excess = torch.stack([self._excess, length - self.eps, outside]).amax()


def check_model(model: Any) -> None:
    """Refuse a model in train mode or in another precision than float32 and float64 (``UserError``)."""
    if not isinstance(model, torch.nn.Module):
        return
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise UserError(
            f"The model is in train mode (module '{training[0]}'), expected evaluation mode: "
            "call model.eval() first."
        )
    for name, parameter in model.named_parameters():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise UserError(
                f"Parameter '{name}' is {parameter.dtype}, evaluation is float32: call model.float() first."
            )


def weights_digest(model: Any) -> str:
    """Return the SHA-256 of a module's structure and tensors, by which a record knows its network.

    Normalisation counts, whose numbers no state dict has. A function has no digest ("").
    """
    if not isinstance(model, torch.nn.Module):
        return ""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str))}
        digest.update(f"{name} {type(module).__qualname__} {sorted(plain.items())}".encode())
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        digest.update(name.encode("utf8"))
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def model_place(model: Any) -> tuple[torch.device, torch.dtype]:
    """Return device and dtype of the model's parameters (CPU and float32 for a callable without any)."""
    parameters = list(model.parameters()) if isinstance(model, torch.nn.Module) else []
    for parameter in parameters:
        return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.float32
