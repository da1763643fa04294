"""Measured and inferred detail: what a restored volume shows beyond cubic interpolation, split by where it comes from.

The consistent interpolation (`tasks/imaging/consistency.py`) is what a scan determines without a network: of all
volumes that explain the scan, the one nearest to its cubic interpolation. What it adds to that interpolation is the
measured detail; what the restored volume adds to it, the inferred detail. With D the degradation, the measured detail
lies in the range of Dᵀ. Where the restored volume explains the scan too, D maps the inferred detail to 0, down to the
noise: the scan neither confirms nor contradicts it. So the two are orthogonal, and their energies add up.

The projection of the restored volume x on the null space of D, `(1 − D⁺D)x`, is not determined by the scan either, but
it holds more than a network adds. Where D is a mean over blocks, `D⁺D` repeats each coarse voxel, and even what cubic
interpolation smooths of these blocks would count as inferred.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.imaging.consistency import TOLERANCE
from tasks.imaging.resample import resample_window
from tasks.sharding.restore import CoarseVolume
from tasks.volume.grid import NetworkAxes
from tasks.volume.scan import SLAB_VOXELS

THREADS = 2  # that split planes


@dataclass(frozen=True)
class Detail:
    """Energy of the detail of restored voxels: sums of squares in normalised intensity.

    Args:
        measured: Of the consistent interpolation less the cubic one.
        inferred: Of the restored voxels less the consistent interpolation.
        voxels: How many there are.
    """

    measured: float = 0.0
    inferred: float = 0.0
    voxels: int = 0

    def __add__(self, other: "Detail") -> "Detail":
        return Detail(self.measured + other.measured, self.inferred + other.inferred, self.voxels + other.voxels)

    @property
    def inferred_share(self) -> float:
        """Energy of the inferred detail over that of both, from 0 to 1; 0 where both are within `TOLERANCE`."""
        total = self.measured + self.inferred
        return self.inferred / total if total > self.voxels * TOLERANCE**2 else 0.0


def split_detail(
    coarse: CoarseVolume,
    axes: NetworkAxes,
    restored: NDArray[np.float32],
    start: int,
    padding: Sequence[NDArray[np.bool_]],
    cubic: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], Detail]:
    """Split planes of a restored volume into what the scan determines and what was inferred.

    Args:
        coarse: The scan; its correction makes the interpolation consistent, and without one that stays cubic.
        axes: Between file axes and network axes.
        restored: `[i, j, planes]`, in the unit of the file.
        start: The first of the planes.
        padding: Where the planes hold padding, `[i, j, planes]`: no detail.
        cubic: The planes of the interpolated scan, its level subtracted; computed if they are not given.

    Returns:
        The inferred detail, float32 of the planes, in the unit of the file; and the energies.
    """
    window = axes.planes(axes.file_shape(coarse.target_shape), start, start + restored.shape[2])
    if cubic is None:
        cubic = axes.to_file(resample_window(coarse.voxels, coarse.target_shape, window))
    plain = consistent = coarse.finish(cubic.copy())
    if coarse.correction is not None:
        correction = axes.to_file(coarse.correction.window(*(slice(*side) for side in window)))
        consistent = coarse.finish(cubic + correction)
    measured, inferred = consistent - plain, restored - consistent
    for mask in padding:
        measured[mask] = inferred[mask] = 0
    span = coarse.intensity.high - coarse.intensity.low
    return inferred, Detail(_energy(measured) / span**2, _energy(inferred) / span**2, inferred.size)


def inferred_detail(
    coarse: CoarseVolume,
    axes: NetworkAxes,
    restored: NDArray[np.float32],
    cubic: NDArray[np.float32],
    padding: Sequence[NDArray[np.bool_]],
) -> tuple[NDArray[np.float32], Detail]:
    """Split a whole restored volume; arguments and result as of `split_detail`."""
    inferred = np.empty(restored.shape, np.float32, order="F")
    step = max(1, SLAB_VOXELS // (restored.shape[0] * restored.shape[1]))

    def split(start: int) -> Detail:
        part = (..., slice(start, start + step))
        masks = [mask[part] for mask in padding]
        inferred[part], found = split_detail(coarse, axes, restored[part], start, masks, cubic[part])
        return found

    with ThreadPoolExecutor(THREADS) as pool:
        return inferred, sum(pool.map(split, range(0, restored.shape[2], step)), Detail())


def _energy(voxels: NDArray[np.float32]) -> float:
    return float(np.sum(np.square(voxels, dtype=np.float64)))
