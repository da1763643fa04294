"""Evaluation against references, comparison of runs and promotion of models."""
