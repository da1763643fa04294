"""Typed configuration of runs, and its presets."""
