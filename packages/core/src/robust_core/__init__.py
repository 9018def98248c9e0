"""Shared core for adversarial training: data, models, CAM, attacks, losses, evaluation, training, reports."""

__version__ = "0.1.0"
