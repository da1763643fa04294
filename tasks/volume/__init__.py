"""Volumes on disk and in memory: reading, writing, grids, intensities, inspection."""
