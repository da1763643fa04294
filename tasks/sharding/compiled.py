"""The network of a worker, loaded and compiled by TensorFlow."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from models.network.phases import with_phases
from tasks.artifacts.saved_models import load_model
from tasks.machine.devices import XLA, claim_devices
from tasks.volume.intensity import CLIP


def compiled_network(name: str, content: bytes, threads: int | None) -> Callable[..., Any]:
    """Load a network to restore volumes in the unit of their file.

    Args:
        name: The model's file name.
        content: The bytes of the `.keras` file.
        threads: CPU threads that TensorFlow may use; None leaves TensorFlow as this process has configured it.

    Returns:
        Takes `(1, depth, height, width, 1)`, the intensity that is 0 to the network, and the span from there to 1, all
        float32; returns the restored volume.

    Raises:
        InputError: The bytes are no model that safe mode admits.
    """
    if threads is not None:
        claim_devices(threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        model = with_phases(load_model(path))
    # One trace for every shape: a plan has one shape of read, but every volume has a plan of its own. Intensities are
    # mapped in it too, where all threads do it.
    signature = [tf.TensorSpec([1, None, None, None, 1], tf.float32), *[tf.TensorSpec([], tf.float32)] * 2]

    def restored(resampled: tf.Tensor, low: tf.Tensor, span: tf.Tensor) -> tf.Tensor:
        normalised = (resampled - low) / span
        seen = tf.clip_by_value(normalised, 0.0, CLIP)
        # What clipping took away, vessels or metal above, ringing below, is added again unchanged.
        return (model(seen, training=False) + (normalised - seen)) * span + low

    compiled: Callable[..., Any] = tf.function(restored, input_signature=signature, jit_compile=XLA)
    return compiled
