"""Resampling of label maps: a target voxel gets the label with the largest weight, so that no label is invented."""

import numpy as np
from numpy.typing import NDArray

from configs.axes import Triple
from tasks.imaging.resample import Window, interpolation

MAX_CHUNK_VOXELS = 1 << 20


def resample_labels(voxels: NDArray[np.float32], shape: Triple, window: Window) -> NDArray[np.float32]:
    """Resample a window of a label map onto the grid of `shape` over the same field of view.

    The result is that of interpolating an indicator map of each label linearly and taking the largest, but costs the
    same however many labels there are: only the labels of the (at most eight) nearest voxels have any weight.

    Args:
        voxels: The whole label map, 3D.
        shape: The whole target shape, along the same axes.
        window: (start, stop) per axis, within the target.

    Returns:
        float32, `stop - start` along each axis; every value is one of `voxels`.
    """
    places, weights = [], []
    for size, wanted, (start, stop) in zip(voxels.shape, shape, window, strict=True):
        mapping = interpolation(size, wanted, "linear")
        taps = np.arange(mapping.weights.shape[1])
        places.append(np.clip(mapping.first[start:stop, None] + taps, 0, size - 1))
        weights.append(mapping.weights[start:stop])
    # Only what the window needs is read.
    lowest = [int(rows.min()) for rows in places]
    voxels = voxels[tuple(slice(low, int(rows.max()) + 1) for low, rows in zip(lowest, places, strict=True))]
    places = [rows - low for low, rows in zip(lowest, places, strict=True)]
    out = np.empty([len(rows) for rows in places], np.float32)
    step = max(1, MAX_CHUNK_VOXELS // max(1, out[0].size))
    for low in range(0, len(out), step):
        rows = slice(low, low + step)
        out[rows] = _largest(voxels, [places[0][rows], *places[1:]], [weights[0][rows], *weights[1:]])
    return out


def _largest(
    voxels: NDArray[np.float32], places: list[NDArray[np.int64]], weights: list[NDArray[np.float64]]
) -> NDArray[np.float32]:
    """Choose among the neighbours of each voxel the label with the largest sum of weights."""
    corners = list(np.ndindex(*(rows.shape[1] for rows in places)))
    labels = [voxels[np.ix_(*(rows[:, tap] for rows, tap in zip(places, corner, strict=True)))] for corner in corners]
    chosen = labels[0].copy()
    mixed = np.nonzero(np.any([other != chosen for other in labels[1:]], axis=0)) if len(labels) > 1 else ()
    if not mixed or not mixed[0].size:
        return chosen
    near = np.stack([label[mixed] for label in labels])
    share = np.stack(
        [
            np.prod([rows[at, tap] for rows, at, tap in zip(weights, mixed, corner, strict=True)], axis=0)
            for corner in corners
        ]
    )
    totals = np.stack([np.where(near == label, share, 0).sum(axis=0) for label in near])
    chosen[mixed] = np.take_along_axis(near, totals.argmax(axis=0)[None], axis=0)[0]
    return chosen
