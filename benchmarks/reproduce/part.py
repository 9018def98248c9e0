"""PART (Zhang et al., ICML 2024): the rows of its tables and the controls that it lacks.

Command: ``nox -s reproduce-part -- --scale demo|reduced|paper`` (``--data-dir`` names real CIFAR-10).
Published figures: the paper's main tables could not be read, so no row has any; they stay empty.

- demo: embedded shapes, resnet8-s2, 9,500 images (500 apart for curves), batch 128, 200 natural steps, 180 of
  warm-up with a rising budget, 100 of the method; 3 attack steps of 4/255; PGD-20 on 400 images. One seed.
- reduced: real CIFAR-10, resnet18-w16, 10,000 class-balanced images, 12 epochs of which 4 warm-up, 10 attack
  steps of 2/255, three seeds; PGD-20 and MMA on 2,000 test images.
- paper: CIFAR-10, ResNet-18, 80 epochs of which 20 warm-up, for a GPU.
"""

from __future__ import annotations

from benchmarks.reproduce.rows import Paper, Row
from part.config import PartConfig, resolve
from part.plan import PartPlan

__all__ = ["PAPER"]

SMALL = ("smoke", "demo")
SLOW = ("reduced", "paper")

PAPER = Paper(
    name="part",
    title="PART: pixel-reweighted adversarial training",
    rows=(
        Row("natural", "natural training", {"method": "natural"}, scales=SMALL),
        Row("at", "AT", {"method": "at"}),
        Row("part", "PART", {"method": "part"}),
        Row("part-official", "PART, official behaviour", {"method": "part", "official": True}),
        Row("part-random", "PART, random places", {"method": "part", "mask_control": "random"}),
        Row("part-shifted", "PART, shifted masks", {"method": "part", "mask_control": "shifted"}),
        Row("part-inverted", "PART, inverted masks", {"method": "part", "mask_control": "inverted"}),
        Row("part-uniform", "PART, uniform mean budget", {"method": "part", "mask_control": "uniform"}),
        Row("trades", "TRADES", {"method": "trades"}, scales=SLOW),
        Row("part-t", "PART-T", {"method": "part-t"}),
        Row("mart", "MART", {"method": "mart"}, scales=SLOW),
        Row("part-m", "PART-M", {"method": "part-m"}),
    ),
    config=PartConfig,
    resolve=resolve,
    plan=PartPlan(),
    protocol="part",
    columns=(("pgd-20", "PGD-20"), ("mma", "MMA"), ("autoattack", "AutoAttack")),
    reference="at",
    seeds={"smoke": (1,), "demo": (1,), "reduced": (1, 2, 3), "paper": (1, 2, 3)},
    reading={
        "smoke": "A tenth of the demo's steps: it shows that everything runs, and nothing else.",
        "demo": "Small drawn images, a small network, one seed: the rows show that training, attack and "
        "evaluation work, not which method is better.",
        "reduced": "A fifth of CIFAR-10, a narrow network and 12 epochs instead of 80: differences of about a "
        "point need the intervals, and nothing here speaks for the published setting.",
        "paper": "The published setting; figures of the paper's main tables are not known to us.",
    },
    note="Controls compute the same maps as PART, so that cost and refresh are equal.",
)
