"""A training in small: a network of two levels, volumes of 48 voxels a side, steps of a few milliseconds."""

import numpy as np
from scipy.ndimage import gaussian_filter

from configs.load import load_config
from tasks.training.blocks import TrainingVolume
from tasks.training.job import TrainedModel, TrainingJob, TrainingStep, Validation, ValidationVolume

SMALL = (
    "network.latent_filters=4",
    "network.stages=[{filters: 4, kernel_size: [4, 4, 4], strides: [2, 2, 2]},"
    " {filters: 1, kernel_size: [3, 4, 4], strides: [1, 2, 2]}]",
    "network.convolutions=1",
    "training.patch=[8, 16, 16]",
    "training.warmup_steps=2",
    "training.early_stopping=null",
)


def volume(seed=0):
    blobs = gaussian_filter(np.random.default_rng(seed).normal(size=(48, 48, 48)), 2)
    return ((blobs > 0) * 0.8 + 0.1).astype(np.float32)


def small_job(folder, *overrides, degradation="iso2x", **options):
    config = load_config("demo", [*SMALL, f"degradation={degradation}", *overrides])
    return TrainingJob(config, [TrainingVolume.of(volume())], folder / "model.keras", **options)


def validation_volume(config, seed=1):
    from tasks.imaging.degrade import degrade
    from tasks.imaging.resample import resample

    fine = volume(seed)
    coarse = degrade(fine, config.degradation)
    return ValidationVolume(coarse, resample(coarse, fine.shape), fine)


def outcome(records):
    """The losses by step, the validations, and the trained model."""
    records = list(records)
    losses = {record.step: record.loss for record in records if isinstance(record, TrainingStep)}
    return losses, [r for r in records if isinstance(r, Validation)], records[-1]


def weights_of(trained: TrainedModel):
    from tasks.artifacts.saved_models import load_model

    return load_model(trained.model).get_weights()
