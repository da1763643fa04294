"""Separable cubic and linear interpolation onto a grid over the same field of view, whole or by window.

Cubic is interpolation by the cubic B-spline (Unser, Aldroubi and Eden, IEEE Trans. Signal Process. 41, 1993), what
`scipy.ndimage.zoom(order=3, grid_mode=True, mode="nearest")` computes. Its recursive prefilter is the filter
`√3·z^|j|` with z = √3 − 2; folded into the interpolation and truncated where |z|^j falls below 1e-8, it leaves weights
of finite support, so a window of the target needs only a window of the input.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from configs.axes import Triple, triple
from tasks.imaging.separable import AxisMap, apply_map

Interpolation = Literal["cubic", "linear"]
Window = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

POLE = np.sqrt(3.0) - 2.0
REACH = 14  # |POLE| ** 14 < 1e-8


def resample(voxels: NDArray[np.float32], shape: Triple, order: Interpolation = "cubic") -> NDArray[np.float32]:
    """Interpolate a volume onto the grid of `shape` over the same field of view.

    Args:
        voxels: 3D, any axis order.
        shape: Target voxels along the same axes; finer, coarser or equal per axis.
        order: "cubic" (B-spline) or "linear".

    Returns:
        float32 of `shape`. Edge values are extended beyond the field of view; a constant stays that constant, and a
        linear ramp stays a ramp away from the edge.
    """
    return resample_window(voxels, shape, triple((0, size) for size in shape), order)


def resample_window(
    voxels: NDArray[np.float32], shape: Triple, window: Window, order: Interpolation = "cubic"
) -> NDArray[np.float32]:
    """Interpolate one window of the grid of `shape`; the same numbers as that window of `resample`, to 1e-6.

    Args:
        voxels: The whole input, 3D; only what the window needs is read.
        shape: The whole target shape.
        window: (start, stop) per axis in target voxels. It may reach beyond the target: there the target's edge
            values are repeated.
        order: "cubic" or "linear".

    Returns:
        float32, `stop - start` along each axis.
    """
    maps = [interpolation(size, wanted, order) for size, wanted in zip(voxels.shape, shape, strict=True)]
    inside = [
        (min(max(start, 0), size - 1), max(min(stop, size), 1))
        for (start, stop), size in zip(window, shape, strict=True)
    ]
    reads = [m.reads(*rows) for m, rows in zip(maps, inside, strict=True)]
    out = voxels[tuple(slice(*read) for read in reads)]
    for axis, (mapping, rows, (low, _)) in enumerate(zip(maps, inside, reads, strict=True)):
        if mapping.size != shape[axis]:
            out = apply_map(out, axis, mapping, rows, low)
    for axis, ((start, stop), (low, high)) in enumerate(zip(window, inside, strict=True)):
        if (start, stop) != (low, high):
            out = out.take(np.clip(np.arange(start, stop), low, high - 1) - low, axis)
    return np.ascontiguousarray(out, dtype=np.float32)


def window_rows(side: tuple[int, int], size: int) -> NDArray[np.int64]:
    """Return the voxels along one axis of a grid that a side of a window shows: beyond the grid its edge, repeated."""
    return np.clip(np.arange(*side), 0, size - 1)


def interpolation(size: int, wanted: int, order: Interpolation) -> AxisMap:
    """Return the map that interpolates `wanted` target voxels from `size` voxels over the same length.

    Target voxel `r` has its centre at `(r + 1/2)·size/wanted − 1/2` in input voxels.
    """
    if size == wanted:
        return AxisMap(size, np.arange(size), np.ones((size, 1)))
    centres = (np.arange(wanted) + 0.5) * size / wanted - 0.5
    floor = np.floor(centres).astype(np.int64)
    t = (centres - floor)[:, None]
    if order == "linear":
        return AxisMap(size, floor, np.hstack([1 - t, t]))
    basis = np.hstack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    prefilter = np.sqrt(3.0) * POLE ** np.abs(np.arange(-REACH, REACH + 1))
    weights = np.zeros((wanted, prefilter.size + 3))
    for tap in range(4):
        weights[:, tap : tap + prefilter.size] += basis[:, tap, None] * prefilter
    # Normalised after the truncation, so that a constant stays constant.
    return AxisMap(size, floor - 1 - REACH, weights / weights.sum(axis=1, keepdims=True))
