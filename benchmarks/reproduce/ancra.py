"""ANCRA (Zhou et al., arXiv 2310.03358): the rows of its README's four tables, their baselines and ablations.

Command: ``nox -s reproduce-ancra -- --scale demo|reduced|paper`` (``--data-dir`` names real CIFAR-10).
Published: README of the official repository; PGD-40 of ANCRA-TRADES from the benchmark entries of the paper. Rows of
other authors are cited from there and not run; the first one's figures are those of another paper's other network.

- demo: embedded shapes, resnet10-s2, 9,500 images, batch 128, 180 natural steps, 110 of warm-up with a rising budget,
  70 of the method; 3 attack steps of 4/255; PGD-40 on 400 images, a short adaptive suite on 200. One seed.
- reduced: real CIFAR-10, resnet10-s2, 10,000 class-balanced images (1,000 more for selection), 12 epochs, 10 attack
  steps of 0.007; PGD-40, AutoAttack and the adaptive suite on the first 1,000 test images; three seeds of the main
  rows, one of the others.
- paper: the published settings, for a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ancra.config import AncraConfig
from ancra.examine import EXAMINATIONS, examine_run
from ancra.plan import AncraPlan
from ancra.scripts import SCRIPTS, resolve
from benchmarks.reproduce.rows import Paper, Row
from robust_core.training import RunDirectory

__all__ = ["PAPERS"]

SMALL = ("smoke", "demo")
SLOW = ("reduced", "paper")
PAPER = ("paper",)
PLAIN = {"attention": "none", "contrast": False}
ONE = (1,)
"""Rows that are told apart by more than the seeds' spread, or are of second interest."""


def _resolve(given: Mapping[str, Any]) -> tuple[AncraConfig, list[str]]:
    """Return the configuration of a row as its published script makes it."""
    values = dict(given)
    script = SCRIPTS[str(values.pop("script", "train_CIFAR10_ResNet"))]
    return resolve(script, values)


def _sources(row: tuple[str, int], runs: Mapping[tuple[str, int], Path]) -> dict[str, Path]:
    """Return what a run's network is transferred from: AT, TRADES, and its own method with another seed."""
    name, seed = row
    found = {}
    for title, other in (("AT", "at"), ("TRADES", "trades")):
        seeds = [s for n, s in runs if n == other and (n, s) != row]
        if seeds and name != other:
            found[title] = runs[other, seed if seed in seeds else seeds[0]]
    others = [s for n, s in runs if n == name and s != seed]
    if others:
        found["another seed"] = runs[name, others[0]]
    return found


def _examine(run: Path, sources: Mapping[str, Path], scale: str) -> None:
    """Examine a run: the first seed in full, the others for their worst case alone."""
    others = RunDirectory.open(run).record["config"]["seed"] != 1
    name = scale if scale in EXAMINATIONS else "cascade" if others else "full"
    examine_run(run, sources, EXAMINATIONS[name])


def _paper(name: str, title: str, rows: tuple[Row, ...], reading: Mapping[str, str], **more: Any) -> Paper:
    return Paper(
        name=name,
        title=title,
        rows=rows,
        config=AncraConfig,
        resolve=_resolve,
        plan=AncraPlan(),
        protocol="pgd",
        columns=(("pgd-40", "PGD-40"), ("autoattack", "AutoAttack"), ("adaptive", "adaptive")),
        reference="trades",
        seeds={"smoke": (1,), "demo": (1,), "reduced": (1, 2, 3), "paper": (1, 2, 3)},
        reading=reading,
        compared=("pgd-40", "adaptive"),
        network_settings=("attention",),
        examine=_examine,
        sources=_sources,
        **more,
    )


def _trio(published: Mapping[str, tuple[float, ...]], column: str, **settings: Any) -> tuple[Row, ...]:
    """Return ANCRA-PGD, -TRADES and -MART with published natural accuracy and that under one attack."""
    rows = []
    for method, figures in published.items():
        known = dict(zip(("natural", column), figures, strict=False))
        rows.append(
            Row(f"ancra-{method}", f"ANCRA-{method.upper()}", {"method": method, **settings}, PAPER, known)
        )
    return tuple(rows)


def _cited(name: str, title: str, natural: float, robust: float, column: str = "autoattack") -> Row:
    return Row(name, title, {}, PAPER, {"natural": natural, column: robust}, cited=True)


_PAPER_READING = {"paper": "The published setting. Rows without measured figures have not been run."}

_CIFAR10 = _paper(
    "ancra",
    "ANCRA, ResNet on CIFAR-10",
    (
        Row("trades", "TRADES", PLAIN),
        Row("trades-train", "TRADES, attacked in training mode", {**PLAIN, "attack_mode": "train"}, SLOW),
        Row(
            "ancra-trades",
            "ANCRA-TRADES",
            {},
            published={"natural": 81.70, "pgd-40": 82.96, "autoattack": 59.70},
        ),
        Row("ra", "reverse attention only", {"zeta": 0.0}),
        Row("anc", "contrast only", {"attention": "none"}),
        Row("ancra-predicted", "ANCRA without true labels", {"attention_by": "predicted"}, SLOW),
        Row("ancra-official", "ANCRA-TRADES, official behaviour", {"official": True}, SLOW, seeds=ONE),
        Row("ancra-kl", "ANCRA-TRADES, KL attack", {"inner_loss": "kl"}, SLOW, seeds=ONE),
        Row("ancra-ones", "auxiliary losses only", {"attention": "ones", "zeta": 0.0}, SLOW, seeds=ONE),
        Row("ancra-own", "own classifiers (CAS)", {"attention": "own", "zeta": 0.0}, SLOW, seeds=ONE),
        Row("at", "AT", {**PLAIN, "method": "pgd"}, SLOW, seeds=ONE),
        Row(
            "ancra-pgd",
            "ANCRA-PGD",
            {"method": "pgd"},
            SLOW,
            {"natural": 85.10, "autoattack": 59.15},
            seeds=ONE,
        ),
        Row("mart", "MART", {**PLAIN, "method": "mart"}, SLOW, seeds=ONE),
        Row(
            "ancra-mart",
            "ANCRA-MART",
            {"method": "mart"},
            SLOW,
            {"natural": 84.88, "autoattack": 59.60},
            seeds=ONE,
        ),
        _cited("sehwag", "cited there as Sehwag et al. 2021, extra data", 87.35, 58.50),
        _cited("addepalli", "Addepalli et al. 2022", 85.71, 52.48),
    ),
    {
        "smoke": "A tenth of the demo's steps: it shows that everything runs, and nothing else.",
        "demo": "Small drawn images, a small network, one seed, a short adaptive suite without AutoAttack: the rows "
        "show that training and attacks work, and what a few attacks that know the defence do to it.",
        "reduced": "A fifth of CIFAR-10, a narrow network and 12 epochs instead of 120: nothing here speaks for the "
        "published setting.",
        **_PAPER_READING,
    },
    note="Published: ResNet-18, 120 epochs. ANCRA-PGD and ANCRA-MART are defined nowhere; ours are in the package's "
    "README.",
)

_CIFAR100 = _paper(
    "ancra-cifar100",
    "ANCRA, ResNet-18 on CIFAR-100",
    (
        Row("trades", "TRADES", {**PLAIN, "data": "cifar100"}, PAPER),
        *_trio(
            {"pgd": (59.73, 34.44), "trades": (53.73, 35.81), "mart": (60.10, 35.05)},
            "autoattack",
            data="cifar100",
        ),
        _cited("addepalli", "Addepalli et al. 2022", 65.45, 27.67),
    ),
    _PAPER_READING,
)

_WIDE = _paper(
    "ancra-wrn",
    "ANCRA, WideResNet on CIFAR-10",
    (
        Row("trades", "WRN-34-10, TRADES", {**PLAIN, "script": "train_WideResNet_baseline"}, PAPER),
        Row(
            "ancra-34",
            "WRN-34-10, ANCRA-TRADES",
            {"script": "train_CIFAR10_WideResNet"},
            PAPER,
            {"natural": 83.19, "autoattack": 66.28},
        ),
        Row(
            "ancra-28",
            "WRN-28-10, ANCRA-TRADES",
            {"script": "train_CIFAR10_WideResNet", "model": "wrn-28-10"},
            PAPER,
            {"natural": 83.61, "autoattack": 65.87},
        ),
        _cited("rade", "WRN-34-10, Rade et al. 2021", 91.47, 62.83),
        _cited("bui", "WRN-34-10, Bui et al. 2022", 84.93, 54.45),
        _cited("cui", "WRN-28-10, Cui et al. 2023, extra data", 92.16, 67.73),
        _cited("gowal", "WRN-28-10, Gowal et al. 2020", 89.48, 62.76),
    ),
    _PAPER_READING,
)

_TINY = {"script": "train_Tiny_ImageNet_PreActResNet"}
_TINY_IMAGENET = _paper(
    "ancra-tiny",
    "ANCRA, PreActResNet-18 on Tiny-ImageNet",
    (
        Row("trades", "TRADES", {"script": "train_PreActResNet_baseline"}, PAPER),
        *_trio({"pgd": (43.02, 29.79), "trades": (38.94, 31.24), "mart": (43.83, 31.44)}, "pgd-40", **_TINY),
        _cited("zhang", "Zhang et al. 2022", 45.26, 18.42, "pgd-40"),
    ),
    _PAPER_READING,
)

PAPERS: Mapping[str, Paper] = {paper.name: paper for paper in (_CIFAR10, _CIFAR100, _WIDE, _TINY_IMAGENET)}
