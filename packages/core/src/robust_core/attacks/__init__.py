"""Adversarial images from (model, images, labels, budget); every attack is a pure function."""

from __future__ import annotations

from robust_core.attacks import objectives
from robust_core.attacks.engine import ascend
from robust_core.attacks.fgsm import fgsm
from robust_core.attacks.margin import margin_pgd
from robust_core.attacks.mma import mma
from robust_core.attacks.pgd import pgd
from robust_core.attacks.starts import draw_start

__all__ = ["ascend", "draw_start", "fgsm", "margin_pgd", "mma", "objectives", "pgd"]
