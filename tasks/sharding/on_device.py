"""The work on a shard that a GPU does besides the network: windows before it, encoding and comparison after it.

The coarse volume is moved there once. A window is its product with the matrices of the interpolation along the three
axes, to which the correction adds another product of this kind; a core that is degraded again is one too. The matrices
are dense: a GPU multiplies their zeros in less time than it takes to go by blocks along the band.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from configs.axes import NetworkShape, triple
from tasks.imaging.consistency import Correction
from tasks.imaging.resample import Window, interpolation, window_rows
from tasks.machine.devices import device_kind, precision_of_convolutions
from tasks.sharding.comparison import Comparison, footprint
from tasks.sharding.plan import Box
from tasks.volume.encoding import Encoding


@dataclass(frozen=True, eq=False)
class _Side:
    """One side of a window of the target grid.

    Args:
        read: The coarse voxels that it needs.
        interpolation: `[side, read]`, on the device.
        basis: `[side, coefficients of the correction]`, on the device; None without a correction.
    """

    read: slice
    interpolation: tf.Tensor
    basis: tf.Tensor | None


class DeviceVolume:
    """Makes the windows of `CoarseVolume.input_window` on the device, to 1e-5 of the range of intensities.

    Args:
        voxels: `(depth, height, width)`. An array is moved to the device; of others, which stay in their file, what a
            window needs.
        target_shape: The grid to restore on, over the same field of view.
        correction: Is added to the interpolated volume; None for none.
        token: Identifies the volume.
    """

    def __init__(
        self, voxels: NDArray[Any], target_shape: NetworkShape, correction: Correction | None, token: str
    ) -> None:
        self.token = token
        self._voxels = _moved(np.asarray(voxels, np.float32)) if isinstance(voxels, np.ndarray) else voxels
        self._coarse, self._target, self._correction = triple(voxels.shape), target_shape, correction
        self._coefficients = None if correction is None else _moved(correction.coefficients)
        self._sides: dict[tuple[int, tuple[int, int]], _Side] = {}  # by axis and side: shards share them

    def input_window(self, window: Window) -> tf.Tensor:
        """Return what the network reads of the target grid, `(depth, height, width)`."""
        sides = [self._side(axis, side) for axis, side in enumerate(window)]
        with precision_of_convolutions("float32"):
            read = self._voxels[tuple(side.read for side in sides)]
            voxels = read if tf.is_tensor(read) else _moved(read)
            resampled = _products(voxels, [side.interpolation for side in sides])
            if self._coefficients is None:
                return resampled
            return resampled + _products(self._coefficients, [side.basis for side in sides])

    def _side(self, axis: int, side: tuple[int, int]) -> _Side:
        if (axis, side) not in self._sides:
            size = self._coarse[axis]
            rows = window_rows(side, self._target[axis])
            inside = rows[0], rows[-1] + 1
            mapping = interpolation(size, self._target[axis], "cubic")
            matrix = mapping.dense(*inside)[rows - rows[0]]
            basis = None
            if self._correction is not None:
                fine = self._correction.bases[axis]
                basis = _moved(np.eye(size, dtype=np.float32)[rows] if fine is None else fine[rows])
            self._sides[axis, side] = _Side(slice(*mapping.reads(*inside)), _moved(matrix), basis)
        return self._sides[axis, side]


def encoded(
    core: tf.Tensor, encoding: Encoding, *, level: float, negative: bool, bounds: tuple[float, float]
) -> tuple[NDArray[Any], int] | None:
    """Encode a core on the device, by the operations of `CoarseVolume.finish` and `Encoding.encode`.

    Args:
        core: float32, in the unit of the file.
        encoding: In integers of one or two bytes, whose arithmetic is that of float32.
        level: Is added first.
        negative: Whether there may be negative voxels; otherwise they become 0.
        bounds: Lowest and highest voxel within the range of the input.

    Returns:
        The voxels as they are stored, and how many were out of bounds; None if one is NaN or infinite.
    """
    voxels = core + np.float32(level)
    if not tf.reduce_all(tf.math.is_finite(voxels)):
        return None
    voxels = voxels if negative else tf.maximum(voxels, 0.0)
    low, high = map(float, bounds)
    # Row by row: GPUs may lack sums of whole numbers, and float32 counts a row exactly.
    outside = np.asarray(tf.reduce_sum(tf.cast((voxels < low) | (voxels > high), tf.float32), axis=2))
    return np.asarray(tf.cast(_numbers(voxels, encoding), encoding.dtype)), int(outside.sum(dtype=np.float64))


def degraded(
    core: tf.Tensor, box: Box, target_shape: NetworkShape, comparison: Comparison, *, level: float, negative: bool
) -> NDArray[np.float32]:
    """Make the part of a core on the device, by the operations of `CoarseVolume.compared` and `Comparison.part`.

    Args:
        core: float32, in the unit of the file.
        box: Its place in the target grid.
        target_shape: Of that grid.
        comparison: Of the volume with its input.
        level: As of `encoded`; it is subtracted again.
        negative: As of `encoded`.
    """
    if (encoding := comparison.encoding) is not None:
        voxels = core + np.float32(level)
        numbers = _numbers(voxels if negative else tf.maximum(voxels, 0.0), encoding)
        core = tf.cast(numbers, tf.float32) * float(encoding.slope) + float(encoding.inter) - level
    found = footprint(box, target_shape, comparison.recipe)
    with precision_of_convolutions("float32"):
        for axis, matrix in found.shrinking:
            core = _product(axis, _moved(matrix), core)
    return found.stored(np.asarray(core))


def _numbers(voxels: tf.Tensor, encoding: Encoding) -> tf.Tensor:
    """Return the numbers of `Encoding.encode`, still as floats."""
    dtype = np.dtype(encoding.dtype)
    if dtype.kind == "f":
        return voxels
    voxels = voxels if dtype.itemsize <= 2 else tf.cast(voxels, tf.float64)
    if (encoding.slope, encoding.inter) != (1, 0):
        voxels = (voxels - float(encoding.inter)) / float(encoding.slope)
    return tf.clip_by_value(tf.round(voxels), *encoding.limits)


def _moved(array: NDArray[np.float32]) -> tf.Tensor:
    """Move an array to the device."""
    with tf.device(f"/{device_kind()}:0"):
        return tf.constant(array)


def _products(voxels: tf.Tensor, matrices: list[tf.Tensor]) -> tf.Tensor:
    """Multiply each axis by its matrix, `[outputs, inputs]`; first those that become shortest."""
    for axis in sorted(range(3), key=lambda axis: matrices[axis].shape[0] / matrices[axis].shape[1]):
        voxels = _product(axis, matrices[axis], voxels)
    return voxels


def _product(axis: int, matrix: tf.Tensor, voxels: tf.Tensor) -> tf.Tensor:
    """Multiply an axis by a matrix, `[outputs, inputs]`."""
    if axis == 0:
        depth, height, width = voxels.shape
        product = tf.matmul(matrix, tf.reshape(voxels, (depth, height * width)))
        return tf.reshape(product, (matrix.shape[0], height, width))
    return tf.matmul(matrix, voxels) if axis == 1 else tf.matmul(voxels, matrix, transpose_b=True)
