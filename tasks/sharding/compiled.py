"""The network of a worker, loaded and compiled by TensorFlow."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from configs.axes import NetworkShape
from configs.precision import Precision
from models.network.graph import read_graph
from models.network.phases import with_phases
from models.network.precision import in_bfloat16
from models.network.receptive_field import receptive_field
from models.network.streamed import StreamedNetwork
from models.network.streaming import Step
from tasks.artifacts.saved_models import load_model
from tasks.machine.devices import (
    XLA,
    claim_devices,
    device_kind,
    device_name,
    precision_of_convolutions,
    require_precision,
)
from tasks.volume.intensity import CLIP

Voxels: TypeAlias = NDArray[np.float32] | tf.Tensor  # in the memory of the process, or of the device
VOXELS = tf.TensorSpec([1, None, None, None, 1], tf.float32)
NUMBER = tf.TensorSpec([], tf.float32)
MAX_GRAPHS = 64  # of steps; a volume takes about six


class CompiledNetwork:
    """A network that restores volumes in the unit of their file, whole or in the steps of a stream.

    Intensities are mapped in its graphs too, where all threads do it.

    Args:
        name: The model's file name.
        content: The bytes of the `.keras` file.
        threads: CPU threads that TensorFlow may use; None leaves TensorFlow as this process has configured it.
        precision: Of the layers.

    Raises:
        InputError: The bytes are no model that safe mode admits, or the device does not compute in the precision.
    """

    def __init__(self, name: str, content: bytes, threads: int | None, precision: Precision = "float32") -> None:
        if threads is not None:
            claim_devices(threads)
        require_precision(precision)
        self._precision = precision
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            model = load_model(path)
        model = with_phases(in_bfloat16(model) if precision == "bfloat16" else model, device_kind())
        self._graph = read_graph(model.get_config())
        self.field, self.device = receptive_field(self._graph), device_name()
        self._streamed = StreamedNetwork(model, self._graph)
        self._steps: dict[tuple[Step, int], Callable[..., Any]] = {}

        def restored(resampled: tf.Tensor, low: tf.Tensor, span: tf.Tensor) -> tf.Tensor:
            seen, clipped = _seen(resampled, low, span)
            return (tf.cast(model(seen, training=False), tf.float32) + clipped) * span + low

        # One trace for every shape: a plan has one shape of read, but every volume has a plan of its own.
        self._whole: Callable[..., Any] = tf.function(
            restored, input_signature=[VOXELS, NUMBER, NUMBER], jit_compile=XLA
        )

    @property
    def on_gpu(self) -> bool:
        """True if a GPU computes it."""
        return device_kind() == "GPU"

    def restored(self, resampled: Voxels, low: float, span: float) -> Voxels:
        """Restore a volume, `(depth, height, width)`, in multiples of the total stride.

        Args:
            resampled: The volume on the target grid.
            low: The intensity that is 0 to the network.
            span: From there to the one that is 1.

        Returns:
            An array for an array, a tensor for a tensor.
        """
        with precision_of_convolutions(self._precision):
            return _like(resampled, self._whole(resampled[None, ..., None], low, span))

    def step(
        self,
        step: Step,
        axis: int,
        entry: Voxels,
        beneath: Voxels | None,
        pieces: Sequence[tf.Tensor],
        low: float,
        span: float,
    ) -> tuple[Voxels | None, list[tf.Tensor]]:
        """Compute a step of a stream.

        Args:
            step: Its layout.
            axis: The streamed one: 0 depth, 1 height, 2 width.
            entry: The planes of the resampled volume that it is given, `(depth, height, width)`.
            beneath: Those at the planes of the output that it makes; None if nobody wants these.
            pieces: What earlier steps have kept for it.
            low: The intensity that is 0 to the network.
            span: From there to the one that is 1.

        Returns:
            The restored planes, an array or a tensor as `beneath`, None if it makes none or they are not wanted; and
            what the next step is given.
        """
        compiled = self._steps.get((step, axis))
        if compiled is None:
            if len(self._steps) == MAX_GRAPHS:
                self._steps.clear()
            compiled = self._steps[step, axis] = self._compiled(step, axis, pieces)
        sides = list(entry.shape)
        sides[axis] = step.layers[self._graph.output].planes
        under = tf.zeros(sides) if beneath is None else beneath
        with precision_of_convolutions(self._precision):
            found, kept = compiled(entry[None, ..., None], under[None, ..., None], low, span, list(pieces))
            restored = _like(beneath, found[0]) if found and beneath is not None else None
        after = [*pieces, *kept]
        return restored, [after[place] for place in step.remaining]

    def blank(self, step: Step, axis: int, shape: NetworkShape) -> list[tf.Tensor]:
        """Return zeros in place of what earlier steps would have kept for a step.

        Args:
            step: Its layout.
            axis: The streamed one.
            shape: Voxels of the resampled volume; those along the streamed axis do not matter.
        """
        blanks = []
        for node, planes in step.pieces:
            sides = [
                int(size / field.sizes[node].step) - field.sizes[node].loss
                for size, field in zip(shape, self.field.axes, strict=True)
            ]
            sides[axis] = planes
            blanks.append(tf.zeros((1, *sides, self._graph.nodes[node].channels), self._streamed.dtype(node)))
        return blanks

    def _compiled(self, step: Step, axis: int, pieces: Sequence[tf.Tensor]) -> Callable[..., Any]:
        def compute(
            entry: tf.Tensor, beneath: tf.Tensor, low: tf.Tensor, span: tf.Tensor, pieces: list[tf.Tensor]
        ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
            made, kept = self._streamed(step, axis, _seen(entry, low, span)[0], pieces)
            if made is None:
                return [], kept
            return [(tf.cast(made, tf.float32) + _seen(beneath, low, span)[1]) * span + low], kept

        # One graph for all shapes across the axis.
        def spec(planes: int, channels: int, dtype: tf.DType) -> tf.TensorSpec:
            sides: list[int | None] = [1, None, None, None, channels]
            sides[1 + axis] = planes
            return tf.TensorSpec(sides, dtype)

        entry, beneath = (
            spec(step.layers[node].planes, 1, tf.float32) for node in (self.field.axes[axis].entry, self._graph.output)
        )
        given = [spec(n, piece.shape[-1], piece.dtype) for piece, (_, n) in zip(pieces, step.pieces, strict=True)]
        signature = [entry, beneath, NUMBER, NUMBER, given]
        return tf.function(compute, input_signature=signature, jit_compile=XLA, autograph=False)  # type: ignore[no-any-return]


def _like(given: Voxels, made: tf.Tensor) -> Voxels:
    """Return the voxels of a batch of one, as an array or a tensor as those that were given."""
    return (made if tf.is_tensor(given) else np.asarray(made))[0, ..., 0]  # the array is no copy, and read-only


def _seen(resampled: tf.Tensor, low: tf.Tensor, span: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the intensities that the network sees, and what clipping took away.

    That is added again unchanged: vessels or metal above, ringing below.
    """
    normalised = (resampled - low) / span
    seen = tf.clip_by_value(normalised, 0.0, CLIP)
    return seen, normalised - seen
