"""Linear maps along one axis, each output a weighted sum of neighbouring inputs, applied as banded matrix products.

Interpolation and degradation are both of this kind. Blocks of output rows, with the columns that they need, go through
the BLAS, which is much faster than a loop over taps, and a window of the output reads only part of the input.
"""

from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

BLOCK = 64  # output rows per product: fewer waste columns on the band, more waste them on zeros


class _OneBlasThread:
    """Context in which the BLAS uses one thread, however many threads of the process are in it.

    These products are many and small: synchronising threads after each costs more than it gains, and on a shared
    machine they wait for each other (measured: 0.5 s on one thread, 2 to 31 s on two).
    """

    def __init__(self) -> None:
        self._lock, self._entered = Lock(), 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self._entered += 1
            if self._entered == 1:
                self._limit = _controller().limit(limits=1, user_api="blas")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._entered -= 1
            if self._entered == 0:
                self._limit.restore_original_limits()


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


ONE_BLAS_THREAD = _OneBlasThread()


def along(axis: int, matrix: NDArray[np.float32], voxels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiply one axis by a matrix, `[outputs, inputs]`."""
    with ONE_BLAS_THREAD:
        return np.moveaxis(np.tensordot(matrix, voxels, (1, axis)), 0, axis)


@dataclass(frozen=True, eq=False)
class AxisMap:
    """A banded matrix from `size` inputs to `len(first)` outputs along one axis.

    Output `r` is the sum over t of `weights[r, t] * input[first[r] + t]`, where an index outside the input means the
    nearest input: edge values are extended.

    Args:
        size: Inputs along the axis.
        first: The first input of each output, int64 `[outputs]`; may lie outside the input.
        weights: float64 `[outputs, taps]`.
    """

    size: int
    first: NDArray[np.int64]
    weights: NDArray[np.float64]

    def reads(self, start: int, stop: int) -> tuple[int, int]:
        """Return the inputs that the outputs `start..stop` need, as (start, stop)."""
        first = self.first[start:stop]
        low, high = int(first.min()), int(first.max()) + self.weights.shape[1]
        return min(max(low, 0), self.size - 1), max(min(high, self.size), 1)

    def dense(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the matrix of the outputs `start..stop` over the inputs that they read."""
        low, high = self.reads(start, stop)
        rows, taps = self.weights[start:stop].shape
        columns = np.clip(self.first[start:stop, None] + np.arange(taps), 0, self.size - 1) - low
        matrix = np.zeros((rows, high - low))
        np.add.at(matrix, (np.arange(rows)[:, None], columns), self.weights[start:stop])
        return matrix.astype(np.float32)


def apply_map(
    voxels: NDArray[np.float32], axis: int, mapping: AxisMap, window: tuple[int, int], offset: int = 0
) -> NDArray[np.float32]:
    """Apply a map along one axis of a 3D array, for a window of its outputs.

    Args:
        voxels: 3D, any strides; along `axis` it holds the inputs from `offset` on.
        axis: 0, 1 or 2.
        mapping: The map.
        window: (start, stop) of the wanted outputs.
        offset: Index of the first input held; all of `mapping.reads(*window)` must be held.

    Returns:
        C-contiguous array of the same shape but for `axis`, which is `stop - start` long.
    """
    start, stop = window
    voxels = np.ascontiguousarray(voxels, dtype=np.float32)
    before, after = (slice(None),) * axis, (slice(None),) * (2 - axis)
    out = np.empty((*voxels.shape[:axis], stop - start, *voxels.shape[axis + 1 :]), np.float32)
    with ONE_BLAS_THREAD:
        # Blocks begin at multiples of BLOCK in the whole output, so that a window sums in the same order as the whole.
        for block in range(start // BLOCK * BLOCK, stop, BLOCK):
            rows = max(block, start), min(block + BLOCK, stop)
            low, high = mapping.reads(*rows)
            source = voxels[(*before, slice(low - offset, high - offset), *after)]
            target = out[(*before, slice(rows[0] - start, rows[1] - start), *after)]
            _product(mapping.dense(*rows), source, target, axis)
    return out


def _product(matrix: NDArray[np.float32], voxels: NDArray[np.float32], out: NDArray[np.float32], axis: int) -> None:
    """Contract `axis` of `voxels` with the columns of `matrix`, into `out`."""
    if axis == 0:
        np.matmul(matrix, voxels.reshape(len(voxels), -1), out=out.reshape(len(out), -1))
    elif axis == 1:
        np.matmul(matrix, voxels, out=out)
    else:
        np.matmul(voxels, matrix.T, out=out)
