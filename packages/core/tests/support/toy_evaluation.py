"""A toy data set, small networks and attacks that are known, for tests of evaluation."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from robust_core.data.types import DatasetInfo, ImageSet
from robust_core.evaluation import Member, Protocol, evaluate, protocol

__all__ = [
    "BRIEF",
    "EPS",
    "MMA",
    "PLAIN",
    "convolutional",
    "flipped",
    "image_set",
    "labelled_by",
    "linear",
    "run_with",
]

EPS = 8 / 255
MMA = Member("mma", "mma", {"eps": EPS, "norm": "linf", "step_size": 2 / 255, "steps": 20, "targets": 3})
BRIEF = Protocol(
    "brief",
    tuple(replace(m, settings={**m.settings, "steps": 4}) for m in (*protocol("pgd-20").members, MMA)),
)
PLAIN = Member("plain", "plain", {"eps": EPS})


def image_set(count=24, classes=3, groups=None, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    names = tuple(f"class {i}" for i in range(classes))
    info = DatasetInfo("toy", "Toy", names, size, (0.5,) * 3, (0.25,) * 3, groups=groups)
    return ImageSet(
        info=info,
        split="test",
        images=torch.randint(60, 196, (count, 3, size, size), generator=generator, dtype=torch.uint8),
        labels=torch.arange(count) % classes,
        indices=torch.arange(count),
        groups=None if groups is None else torch.arange(count) % len(groups),
    )


def linear(classes=3, size=6, seed=1, scale=1.0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, classes))
    with torch.no_grad():
        model[1].weight.mul_(scale)
        model[1].bias.zero_()
    return model.eval()


def convolutional(classes=3):
    torch.manual_seed(2)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    model = nn.Sequential(*layers, nn.Linear(8, classes))
    with torch.no_grad():
        model[1].running_mean.uniform_(-0.1, 0.1)
        model[5].weight.mul_(4)
    return model.eval()


def labelled_by(model, dataset):
    """The data set with the model's own predictions as labels: natural accuracy is 1."""
    with torch.no_grad():
        return replace(dataset, labels=model(dataset.pixels(slice(None))).argmax(dim=1))


def run_with(runner, model, dataset, members=(PLAIN,), **options):
    runners = runner if isinstance(runner, dict) else {"plain": runner}
    return evaluate(model, dataset, Protocol("own", tuple(members)), runners=runners, **options)


def flipped(model, images):
    """Images in the ball that a linear model gets wrong wherever one exists: away from each class in turn."""
    weight = model[1].weight
    steps = [(weight[k] - weight).sum(dim=0).sign().view(images.shape[1:]) for k in range(len(weight))]
    return [(images + EPS * step).clamp(0, 1) for step in steps]
