"""The weights of groups: Group-DRO, WULG, the bounded updates of GDRO-AT, greedy (BTL) and CGD.

Each rule is a pure function of group losses, counts and state; ``step`` is the one that a training method calls.
"""

from gdro_at.weights.cgd import CgdWeights, affinity, cgd_weights
from gdro_at.weights.exponential import adversarial_update, natural_update
from gdro_at.weights.greedy import greedy_weights
from gdro_at.weights.projection import kl_projection
from gdro_at.weights.rule import OFFICIAL_AXES, Constants, GroupRule, constants, single_changes
from gdro_at.weights.state import RuleState
from gdro_at.weights.step import RuleStep, step

__all__ = [
    "OFFICIAL_AXES",
    "CgdWeights",
    "Constants",
    "GroupRule",
    "RuleState",
    "RuleStep",
    "adversarial_update",
    "affinity",
    "cgd_weights",
    "constants",
    "greedy_weights",
    "kl_projection",
    "natural_update",
    "single_changes",
    "step",
]
