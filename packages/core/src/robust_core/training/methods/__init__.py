"""Training methods that papers build on: an attack and a loss each."""

from robust_core.training.methods.adversarial import (
    Adversarial,
    AtLoss,
    MartLoss,
    Natural,
    OuterLoss,
    TradesLoss,
)
from robust_core.training.methods.inner import InnerAttack

__all__ = ["Adversarial", "AtLoss", "InnerAttack", "MartLoss", "Natural", "OuterLoss", "TradesLoss"]
