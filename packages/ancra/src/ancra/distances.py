"""``feature_distance.py``: how far features of a class move under attack, and how far other classes' are.

Positive pairs: an image and itself attacked. Negative pairs: an image and one of another class in its batch,
attacked towards the image's class or natural. Distances are those of the pooled features.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ancra.attacks import targeted_pgd
from ancra.checkpoint import Subject, SubjectConfig, load_subject
from ancra.features import Distances, Spread, feature_distances, spread_of
from ancra.inspection import InspectionScript, made_folder, write_log
from ancra.negatives import STRATEGIES, draw, pick_negatives
from robust_core.attacks import draw_start, pgd
from robust_core.config import expect, option
from robust_core.data import ImageSet
from robust_core.errors import UserError
from robust_core.models import FrozenView, Network, pooled_features
from robust_core.randomness import generator_for
from robust_core.storage import file_digest, write_json, write_whole

__all__ = [
    "QUANTITIES",
    "DistanceConfig",
    "PairDistances",
    "Quantity",
    "main",
    "pair_distances",
    "statistics_line",
]

CR = 2.0
"""Weight of the auxiliary logits in the attack on negatives, as published."""

PUBLISHED_FLAGS = (
    *("--epsilon", "--seed", "--batch-size", "--no-cuda", "--dataset", "--model-dir"),
    *("--strategy", "--log-path", "--num-steps", "--step-size", "--target-label"),
)
EPILOG = """
Network, attention and dataset come from the run's config.json; a bare state dict needs them as flags. What is
saved under --name is drawn by draw_hist.py. Negatives come from the batch, so they depend on --batch-size.
"""


class Quantity(NamedTuple):
    """A measured quantity: the end of its file's name, how the log calls it, which pairs, and its unit."""

    key: str
    title: str
    pairs: str
    label: str


QUANTITIES = (
    Quantity("PPfcos", "PP-f-Cosine", "positive", "Cosine similarity"),
    Quantity("PPfL2", "PP-f-fL2", "positive", "L2 distance"),
    Quantity("NPfcos", "NP-f-Cosine", "negative", "Cosine similarity"),
    Quantity("NPfL2", "NP-f-L2", "negative", "L2 distance"),
)


@dataclass(frozen=True, kw_only=True)
class DistanceConfig(SubjectConfig):
    """Settings of the measurement; the defaults are the published ones."""

    model_dir: str = option(
        "./model/NPsfc-cifar10-strategy-random-adv-alpha-1.0-beta-6.0-zeta-3.0-seed-1",
        "run directory, or state dict; eval.log goes beside it",
        flags=("--run-dir",),
        group="measurement",
    )
    target_label: int = option(0, "class whose images are measured", group="measurement")
    strategy: str = option(
        "random",
        "choice of negatives; with _adv they are attacked towards the image's class",
        choices=(*STRATEGIES, *(f"{name}_adv" for name in STRATEGIES)),
        group="measurement",
    )
    epsilon: float = option(8 / 255, "budget of the attacks", kind="fraction", group="measurement")
    num_steps: int = option(10, "steps of the attacks", group="measurement")
    step_size: float = option(0.007, "step of the attacks", kind="fraction", group="measurement")
    batch_size: int = option(128, "images per batch, among which negatives are found", group="measurement")
    seed: int = option(42, "seed of everything random")
    out: str = option("./three", "folder of the measured arrays", group="measurement")
    name: str = option(
        "", "name of the method in files and figures (default: the run's)", group="measurement"
    )
    log_path: str = option("./logs", "no effect, as published", group="measurement")

    def validate(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            UserError: naming the flag, its value and what is expected.
        """
        super().validate()
        for name in ("batch_size", "num_steps"):
            expect(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("epsilon", "step_size"):
            expect(0.0 <= getattr(self, name) <= 1.0, name, getattr(self, name), "0 to 1, e.g. 8/255")
        named = not self.name or re.fullmatch(r"\w[\w .+-]*", self.name) is not None
        expect(named, "name", repr(self.name), "letters, digits, blanks and - _ . +")


class PairDistances(NamedTuple):
    """Distances of the positive pairs ``(N,)`` and of the negative ones, which lack images ``without_negative``."""

    positive: Distances
    negative: Distances
    without_negative: int

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return the four vectors by the keys of ``QUANTITIES``."""
        values = (*self.positive, *self.negative)
        return {quantity.key: value.numpy() for quantity, value in zip(QUANTITIES, values, strict=True)}


def pair_distances(
    network: Network,
    images: ImageSet,
    *,
    target: int,
    strategy: str = "random",
    eps: float = 8 / 255,
    step_size: float = 0.007,
    steps: int = 10,
    batch_size: int = 128,
    seed: int = 42,
    device: torch.device | str = "cpu",
) -> PairDistances:
    """Return the distances of a class's positive and negative pairs, in the images' order, on the CPU.

    Both attacks begin at 0.001 N(0, 1) off the image: on the positive side cross-entropy of the final logits is
    climbed, on the negative side (``strategy`` ending in ``_adv``) that towards ``target`` is descended, with
    twice the mean of the auxiliary logits'. Candidates for an image are those of its batch, so ``batch_size``
    matters to the negative side alone. The network must be in evaluation mode.
    """
    view = FrozenView(network)
    attack: dict[str, Any] = {"eps": eps, "step_size": step_size, "steps": steps}
    positive, negative, alone = [], [], 0
    for first in range(0, len(images), batch_size):
        place = slice(first, first + batch_size)
        anchors = (images.labels[place] == target).nonzero()[:, 0].to(device)
        if not len(anchors):
            continue
        pixels, labels = images.pixels(place).to(device), images.labels[place].to(device)
        indices = images.indices[place][anchors.cpu()].tolist()
        natural = _features(network, pixels[anchors])
        start = _starts(pixels[anchors], indices, seed, "feature-distance positive", eps)
        adversarial = pgd(view, pixels[anchors], labels[anchors], start=start, **attack)
        positive.append(feature_distances(natural, _features(network, adversarial)))
        chosen, found = _negatives(
            view, pixels, labels, anchors, strategy, (seed, images.info.num_classes, first)
        )
        others = pixels[chosen]
        if strategy.endswith("_adv"):
            start = _starts(others, indices, seed, "feature-distance negative", eps)
            others = targeted_pgd(view, others, labels[anchors], start=start, cr=CR, **attack)
        apart = feature_distances(natural[found], _features(network, others)[found])
        negative.append(apart)
        alone += len(anchors) - len(apart.l2)
    return PairDistances(_joined(positive), _joined(negative), alone)


@torch.no_grad()
def _features(network: Network, images: Tensor) -> Tensor:
    return pooled_features(network, images)


def statistics_line(title: str, spread: Spread) -> str:
    """Return the published statistics of a quantity as one line."""
    told = ", ".join(f"{name}: {value:.6f}" for name, value in spread._asdict().items())
    return f"{title} {told}"


def run(config: DistanceConfig, given: Mapping[str, Any]) -> None:
    """Measure, print and log the published statistics, save the arrays."""
    subject = load_subject(config.model_dir, config, given, flag="--model-dir")
    _check_class(subject.images, config.target_label)
    folder = made_folder(config.out)
    found = pair_distances(
        subject.network,
        subject.images,
        target=config.target_label,
        strategy=config.strategy,
        eps=config.epsilon,
        step_size=config.step_size,
        steps=config.num_steps,
        batch_size=config.batch_size,
        seed=config.seed,
        device=subject.device,
    )
    if len(found.negative.l2) < 2:
        raise UserError(
            f"Batches of {config.batch_size} images hold no other class than {config.target_label} to take negatives "
            "from; raise --batch-size."
        )
    lines = [
        statistics_line(quantity.title, spread_of(torch.from_numpy(found.arrays()[quantity.key])))
        for quantity in QUANTITIES
    ]
    if found.without_negative:
        lines.append(f"{found.without_negative} images had no image of another class in their batch")
    for line in lines:
        print(line)
    write_log(subject.folder / "eval.log", config, lines, subject.found, append=True)
    print(f"arrays: {_save(found, subject, config, folder)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``feature_distance.py``; returns the exit code."""
    return InspectionScript(
        name="feature_distance.py",
        description="Measure how far features of a class are from attacked ones and from those of other classes.",
        epilog=EPILOG,
        kind=DistanceConfig,
        run=run,
        published=PUBLISHED_FLAGS,
        idle={"log_path": "eval.log goes beside the network's weights, as published"},
    )(arguments)


def _starts(images: Tensor, indices: Sequence[int], seed: int, purpose: str, eps: float) -> Tensor:
    """Return 0.001 N(0, 1) off each image, a function of its index alone."""
    drawn = [
        draw_start(
            image[None], eps=eps, kind="normal", generator=generator_for(seed, purpose, index), clip=False
        )
        for image, index in zip(images.cpu(), indices, strict=True)
    ]
    return torch.cat(drawn).to(images)


def _negatives(
    view: FrozenView,
    images: Tensor,
    labels: Tensor,
    anchors: Tensor,
    strategy: str,
    drawn_for: tuple[int, int, int],
) -> tuple[Tensor, Tensor]:
    """Return each anchor's negative as a position in the batch, and whether there is one."""
    seed, num_classes, first = drawn_for
    rule = strategy.removesuffix("_adv")
    with torch.no_grad():
        logits = None if rule == "random" else view(images)
    numbers = draw(len(labels), generator_for(seed, "feature-distance choice", first), labels.device)
    chosen = pick_negatives(rule, labels, logits, numbers, num_classes=num_classes)
    return chosen.indices[anchors, 0], chosen.found[anchors, 0]


def _joined(parts: Sequence[Distances]) -> Distances:
    cosine, l2 = ([getattr(part, name).cpu() for part in parts] for name in Distances._fields)
    return Distances(torch.cat(cosine), torch.cat(l2))


def _check_class(images: ImageSet, target: int) -> None:
    """Refuse a class that is not there, or of which one image is: a variance needs two."""
    classes = images.info.num_classes
    expect(
        0 <= target < classes, "target_label", target, f"0 to {classes - 1}, a class of {images.info.name}"
    )
    count = int((images.labels == target).sum())
    if count < 2:
        raise UserError(
            f"--target-label {target} has {count} of the {len(images)} test images, expected at least 2; take more by "
            "--test-images, or another class."
        )


def _save(found: PairDistances, subject: Subject, config: DistanceConfig, folder: Path) -> Path:
    """Write the four arrays, then what they are; returns the latter's path."""
    name = config.name or subject.name
    beginning = folder / f"{config.target_label}-{name}"
    manifest = beginning.with_name(beginning.name + ".json")
    digest = file_digest(subject.weights)
    if _measured_before(manifest) not in (None, digest):
        print(f"this replaces what was measured of other weights as '{name}'; --name keeps both")
    statistics = {}
    for quantity in QUANTITIES:
        values = found.arrays()[quantity.key]
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=False)
        write_whole(beginning.with_name(f"{beginning.name}-{quantity.key}.npy"), buffer.getvalue())
        statistics[quantity.key] = spread_of(torch.from_numpy(values))._asdict()
    record = {
        "method": name,
        "target_label": config.target_label,
        "class": subject.images.info.classes[config.target_label],
        "weights": {"file": str(subject.weights), "sha256": digest},
        "network": dict(subject.settings),
        "images": {"positive": len(found.positive.l2), "negative": len(found.negative.l2)},
        "without_negative": found.without_negative,
        "settings": {
            key: getattr(config, key)
            for key in ("strategy", "epsilon", "num_steps", "step_size", "batch_size", "seed")
        },
        "statistics": statistics,
    }
    write_json(manifest, record)
    return manifest


def _measured_before(manifest: Path) -> str | None:
    """Return the checksum of the weights that an earlier measurement of this name is of."""
    try:
        return str(json.loads(manifest.read_text(encoding="utf8"))["weights"]["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
