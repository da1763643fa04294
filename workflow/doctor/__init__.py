"""Checks of the machine: packages, TensorFlow, Ray, MLflow, disk, sharding."""
