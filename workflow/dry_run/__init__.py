"""Checks and estimates before a run: configuration, volumes, memory, cluster, disk."""
