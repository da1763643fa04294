"""A coarse volume in the memory of a GPU, where the windows that a network reads of the target grid are made.

The volume is moved there once. A window is its product with the matrices of the interpolation along the three axes, and
what the correction adds another of this kind. The matrices are dense, which a GPU multiplies faster than their bands.
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


def _moved(array: NDArray[np.float32]) -> tf.Tensor:
    """Move an array to the device."""
    with tf.device(f"/{device_kind()}:0"):
        return tf.constant(array)


def _products(voxels: tf.Tensor, matrices: list[tf.Tensor]) -> tf.Tensor:
    """Multiply each axis by its matrix, `[outputs, inputs]`; first those that become shortest."""
    for axis in sorted(range(3), key=lambda axis: matrices[axis].shape[0] / matrices[axis].shape[1]):
        matrix, sizes = matrices[axis], voxels.shape
        if axis == 0:
            product = tf.matmul(matrix, tf.reshape(voxels, (sizes[0], sizes[1] * sizes[2])))
            voxels = tf.reshape(product, (matrix.shape[0], sizes[1], sizes[2]))
        elif axis == 1:
            voxels = tf.matmul(matrix, voxels)
        else:
            voxels = tf.matmul(voxels, matrix, transpose_b=True)
    return voxels
