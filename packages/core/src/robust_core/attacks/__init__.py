"""Adversarial images from (model, images, labels, budget); every attack is a pure function."""

from __future__ import annotations

from robust_core.attacks import objectives
from robust_core.attacks.apgd import apgd
from robust_core.attacks.autoattack import AutoAttackResult, autoattack, autoattack_available
from robust_core.attacks.corners import random_corners
from robust_core.attacks.engine import ascend
from robust_core.attacks.fgsm import fgsm
from robust_core.attacks.fused import UnderCam, mma_under_cam, pgd_under_cam
from robust_core.attacks.margin import margin_pgd
from robust_core.attacks.mma import ascend_targets, mma
from robust_core.attacks.pgd import pgd
from robust_core.attacks.rays import rays
from robust_core.attacks.search import Standing
from robust_core.attacks.square import square
from robust_core.attacks.starts import draw_start

__all__ = [
    "AutoAttackResult",
    "Standing",
    "UnderCam",
    "apgd",
    "ascend",
    "ascend_targets",
    "autoattack",
    "autoattack_available",
    "draw_start",
    "fgsm",
    "margin_pgd",
    "mma",
    "mma_under_cam",
    "objectives",
    "pgd",
    "pgd_under_cam",
    "random_corners",
    "rays",
    "square",
]
