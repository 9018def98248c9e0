"""Speed of attacks, masks and loading, against what people use instead: ``python -m benchmarks.speed``."""
