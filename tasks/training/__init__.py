"""Training: patches, the training loop, checkpoints and validation."""
