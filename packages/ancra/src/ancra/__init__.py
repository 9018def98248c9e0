"""ANCRA: reverse attention and asymmetric negative contrast (Zhou et al., arXiv 2310.03358)."""

__version__ = "0.1.0"
