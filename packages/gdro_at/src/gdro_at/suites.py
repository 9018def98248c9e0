"""The attacks of the final evaluation: the test attack, APGD, the suite that fits the classes, budgets."""

from __future__ import annotations

from gdro_at.config import GdroConfig
from robust_core.evaluation import Member, Protocol

__all__ = ["BUDGETS", "GROUPS", "final_protocol", "sweep_protocol"]

GROUPS = "groups"
"""The name of the final protocol."""
BUDGETS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Budgets of the sweep, over 255."""
APGD_STEPS = 20


def _pgd(config: GdroConfig, eps: float) -> Member:
    return Member("pgd-10", "pgd", {"eps": eps, "step_size": config.step_within(eps), "steps": 10})


def final_protocol(config: GdroConfig, classes: int) -> Protocol:
    """Return PGD-10 and APGD on all test images, and the suite on the first ``--suite-images``.

    For two classes that is ``binary-aa`` (cross-entropy is a monotone function of the margin there, and DLR needs three
    classes), for more AutoAttack (honest-evaluation, section 2).
    """
    eps = config.test_eps
    members = [
        _pgd(config, eps),
        Member("apgd-ce", "apgd", {"eps": eps, "steps": APGD_STEPS, "loss": "ce"}),
    ]
    settings = {"eps": eps, "norm": "linf", "version": "standard"}
    if config.suite_images and classes == 2:
        images = config.suite_images
        margin = {"eps": eps, "steps": 100, "restarts": 5, "loss": "margin"}
        members += [
            Member("apgd-margin", "apgd", margin, images=images),
            Member("fab", "autoattack", {**settings, "only": ["fab-t"]}, images=images),
            Member("square", "square", {"eps": eps, "queries": 5000}, images=images),
        ]
    elif config.suite_images:
        members.append(Member("autoattack", "autoattack", settings, images=config.suite_images))
    return Protocol(GROUPS, tuple(members))


def sweep_protocol(config: GdroConfig, budget: float) -> Protocol:
    """Return PGD-10 under a budget over 255."""
    return Protocol(f"eps-{budget:g}", (_pgd(config, budget / 255),))
