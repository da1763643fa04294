"""Validation: the network restores whole volumes at the end, or, for early stopping, now and then until no better."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from configs.schema import RunConfig
from tasks.imaging.consistency import correct
from tasks.machine.devices import XLA
from tasks.scoring.metrics import foreground_mask, psnr
from tasks.training.checkpoints import Checkpoint
from tasks.training.job import ValidationVolume
from tasks.training.networks import build_network

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_GAIN = 1e-4  # dB; the same weights scored twice differ by 1e-8


class Validator:
    """Scores weights on whole volumes and remembers the best.

    Args:
        volumes: To restore.
        config: The run.
        weights: Returns the weights to score.

    Attributes:
        best: Weights of the best validation so far; empty before the first.
        best_psnr: Of that validation, in dB.
        history: Of every validation so far, in dB.
    """

    def __init__(
        self, volumes: Sequence[ValidationVolume], config: RunConfig, weights: Callable[[], list[Any]]
    ) -> None:
        self._volumes, self._recipe, self._weights = volumes, config.degradation, weights
        self._stride = config.network.total_stride
        steps, rule = config.training.steps, config.training.early_stopping
        # Without early stopping at the last step alone; with it at least once.
        self._every = min(rule.every, steps) if rule else steps
        self._patience = rule.patience if rule else math.inf
        self._model = build_network(config.network)
        signature = [tf.TensorSpec([1, None, None, None, 1], tf.float32)]
        self._restore = tf.function(lambda volume: self._model(volume, training=False), signature, jit_compile=XLA)
        self.best: Sequence[NDArray[Any]] = ()
        self.best_psnr, self._misses = -np.inf, 0
        self.history: list[float] = []

    @property
    def exhausted(self) -> bool:
        """True if no validation was better for as long as patience lasts."""
        return self._misses >= self._patience

    def is_due(self, step: int) -> bool:
        """True if a validation follows this step."""
        return step % self._every == 0

    def validate(self) -> float:
        """Restore the volumes with the weights of this moment; returns the mean PSNR inside the foreground, in dB."""
        weights = self._weights()
        self._model.set_weights(weights)
        score = float(np.mean([self._score(volume) for volume in self._volumes]))
        self.history.append(score)
        if score > self.best_psnr + MIN_GAIN:
            self.best, self.best_psnr, self._misses = weights, score, 0
        else:
            self._misses += 1
        return score

    def noted(self, checkpoint: Checkpoint) -> Checkpoint:
        """Add what the next validation depends on."""
        return replace(
            checkpoint, best=self.best, best_psnr=self.best_psnr, misses=self._misses, validations=tuple(self.history)
        )

    def go_on(self, checkpoint: Checkpoint) -> None:
        """Take back what `noted` added."""
        self.best, self.best_psnr, self._misses = checkpoint.best, checkpoint.best_psnr, checkpoint.misses
        self.history = list(checkpoint.validations)

    def _score(self, volume: ValidationVolume) -> float:
        sizes = volume.resampled.shape
        padding = [(0, -size % stride) for size, stride in zip(sizes, self._stride, strict=True)]
        whole = np.pad(volume.resampled, padding, mode="edge")
        depth, height, width = sizes
        restored = self._restore(tf.constant(whole[None, ..., None])).numpy()[0, :depth, :height, :width, 0]
        corrected = correct(restored, volume.coarse, self._recipe, noise=self._recipe.noise.sigma).voxels
        return psnr(volume.fine, corrected, foreground_mask(volume.fine))
