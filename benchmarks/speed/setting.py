"""What all comparisons share: the network, a batch, the frozen views of each precision, the time to spend."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robust_core.data import ImageSet, load_dataset
from robust_core.models import FrozenView, Network, build_model
from robust_core.training.machine import bf16_units, cpu_flags

__all__ = ["EPS", "LOW_EPS", "STEP_SIZE", "Setting", "bf16_note", "make_setting", "say"]

EPS, LOW_EPS, STEP_SIZE = 8 / 255, 7 / 255, 2 / 255


@dataclass(frozen=True)
class Setting:
    """One network as the published code has it (NCHW, unfolded, evaluation mode), and our views of it."""

    network: Network
    views: dict[str, FrozenView]
    images: Tensor
    labels: Tensor
    dataset: ImageSet
    steps: int
    seconds: float
    least_rounds: int

    @property
    def device(self) -> torch.device:
        """The device of images and network."""
        return self.images.device

    @property
    def matrix_units(self) -> bool:
        """Whether bfloat16 has matrix units here, which the higher targets presume."""
        return self.device.type == "cuda" or "amx_bf16" in cpu_flags()


def say(line: str) -> None:
    """Print one line at once."""
    print(line, flush=True)


def bf16_note(device: torch.device) -> str:
    """Return one line: what bfloat16 is worth on this device."""
    if not bf16_units(device):
        return "bfloat16: no bf16 units, so it would be emulated and slower; float32 only"
    kind = "matrix units" if device.type == "cuda" or "amx_bf16" in cpu_flags() else "vector units only"
    return f"bfloat16: measured beside float32 ({kind})"


def make_setting(
    *,
    model: str,
    batch: int,
    steps: int,
    device: torch.device,
    compile: bool,
    seconds: float,
    least_rounds: int,
) -> Setting:
    """Return the shared setting: random weights from a fixed seed, norm statistics of the drawn images."""
    drawn = load_dataset("shapes", split="train", seed=0)
    # The augmentation of CIFAR-10, which is what the published loaders do.
    dataset = replace(drawn, info=replace(drawn.info, crop_padding=4, flip=True)).to(device)
    torch.manual_seed(0)
    network = build_model(model, drawn.info.num_classes).to(device)
    images = dataset.pixels(slice(0, batch)).contiguous()
    with torch.no_grad():
        network.train()
        for first in range(0, 512, 128):  # so that activations have a sensible size in evaluation mode
            network(dataset.pixels(slice(first, first + 128)))
    network.eval()
    with torch.no_grad():  # logits of unit spread, so that an attack has something to gain
        head = network.pooled_head()
        if head is not None:
            head.linear.weight.div_(network(images).std())
    precisions = {"float32": torch.float32}
    if bf16_units(device):
        precisions["bfloat16"] = torch.bfloat16
    views = {name: FrozenView(network, dtype=dtype) for name, dtype in precisions.items()}
    if compile:
        fastest = list(precisions)[-1]
        views[f"{fastest} compiled"] = FrozenView(network, dtype=precisions[fastest], compile=True)
    return Setting(network, views, images, dataset.labels[:batch], dataset, steps, seconds, least_rounds)
