"""A degraded volume restored in one pass in this process: what benchmarks score without a cluster."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tasks.imaging.resample import resample
from tasks.scoring.protocol import DegradedReference
from tasks.volume.intensity import CLIP, find_intensity, normalise

Voxels = NDArray[np.float32]


def one_pass(model: keras.Model, stride: Sequence[int]) -> Callable[[DegradedReference], Voxels]:
    """Return what restores a degraded reference on its padded grid, `(i, j, k)` in the unit of the file, uncorrected.

    Args:
        model: A restorer.
        stride: Its total stride along depth, height and width.
    """
    signature = [tf.TensorSpec([1, None, None, None, 1], tf.float32)]
    network = tf.function(lambda volume: model(volume, training=False), signature, jit_compile=False)

    def restore(degraded: DegradedReference) -> Voxels:
        found = find_intensity(degraded.coarse.voxels)
        resampled = degraded.axes.to_network(resample(degraded.coarse.voxels, degraded.padded.shape))
        seen = normalise(resampled, found, clip=CLIP)
        padding = [(0, -size % step) for size, step in zip(seen.shape, stride, strict=True)]
        whole = network(tf.constant(np.pad(seen, padding, mode="edge")[None, ..., None])).numpy()[0, ..., 0]
        added = (whole[tuple(map(slice, seen.shape))] - seen) * np.float32(found.high - found.low)
        return degraded.axes.to_file(resampled + added)

    return restore
