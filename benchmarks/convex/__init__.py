"""Does GDRO-AT reach what its abstract claims where everything can be known: ``python -m benchmarks.convex``."""
