"""The worker pool and the restoration of volumes through it."""
