"""GDRO-AT: group-distributionally-robust weights on the natural and the adversarial loss."""

__version__ = "0.1.0"
