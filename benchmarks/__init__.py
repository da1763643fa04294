"""Measurements whose figures the README quotes; each module writes its results below `benchmarks/results/`."""
