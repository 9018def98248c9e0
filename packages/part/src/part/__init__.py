"""PART: pixel-reweighted adversarial training (Zhang et al., ICML 2024, arXiv 2406.00685)."""

__version__ = "0.1.0"
