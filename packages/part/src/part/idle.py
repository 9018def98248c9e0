"""Which given settings have no effect on a run of PART, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robust_core.config import idle_warnings

if TYPE_CHECKING:
    from part.config import PartConfig

__all__ = ["idle_settings"]


def idle_settings(config: PartConfig, given: Mapping[str, Any]) -> list[str]:
    """Return one warning for each given setting that has no effect on this run."""
    return idle_warnings({**_of_the_method(config), **_of_the_masks(config)}, given)


def _of_the_method(config: PartConfig) -> dict[str, tuple[bool, str]]:
    """Return, for settings of attack, loss, schedule and tests, whether they are used, and why they would not be."""
    trades, mart, natural = config.family == "trades", config.family == "mart", config.method == "natural"
    warms_up = not natural and bool(config.warm_up_steps or config.warm_up)
    return {
        "beta": (trades or mart, "only TRADES and MART have a robust term"),
        "forwards": (trades, "only TRADES passes natural images twice"),
        "attack": (
            (config.family == "at" and not natural) or config.attack == "pgd",
            "TRADES and MART have their own attack, natural training has none",
        ),
        "num_steps": (not natural, "natural training has no attack"),
        "eps_ramp": (warms_up or not config.eps_ramp, "there is no attack in a warm-up"),
        "epochs": (not config.main_steps, "--main-steps sets the length"),
        "curve_images": (not config.selects_best, "--selection best looks at all validation images"),
        "warm_up": (
            not config.warm_up_steps and not natural,
            "--warm-up-steps sets the length, and natural training has none",
        ),
        **dict.fromkeys(
            ("adjust_first", "adjust_second", "lr_counter"),
            (config.schedule == "step", "it is about --schedule step"),
        ),
        "aa_images": (config.final_tests == "all" or not config.aa_images, "it is about --final-tests all"),
    }


def _of_the_masks(config: PartConfig) -> dict[str, tuple[bool, str]]:
    """Return the same for settings of masks, budgets and the attack within them."""
    behind = config.has_main_phase
    if config.masked and config.uses_stored_budgets:
        why = "--pre-trained reads the budgets"
    else:
        why = f"{config.method} has no masks"
    # a warm-up of all epochs leaves nothing to the masks, whatever else holds
    short = "the warm-up takes all epochs, so no mask is made"

    def told(used: bool, why: str) -> tuple[bool, str]:
        return used and behind, why if behind or not config.masked else short

    masks = ("cam", "mask_rule", "cam_class", "mask_control")
    return {
        **dict.fromkeys(masks, told(config.makes_masks, why)),
        "mask_refresh": told(config.masked, why),
        "save_weights": told(
            config.makes_masks and (config.mask_refresh != "step" or config.save_weights == 1),
            "masks are made for every batch, or not at all",
        ),
        "low_epsilon": told(config.has_small_budget and not config.uses_stored_budgets, why),
        "start": told(config.method == "part" and config.attack == "pgd", "it is about PART's PGD"),
        "rand_init": told(
            config.method == "part" and config.attack == "mma",
            "it is about PART with --attack mma; PGD always starts at random",
        ),
        "pre_trained": told(
            config.uses_stored_budgets or not config.pre_trained,
            "stored budgets belong to PART with --mask-refresh batch",
        ),
    }
