"""Voxels that stay in their file: a process reads the windows that it needs, and no process holds the volume."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.axes import NetworkShape
from tasks.volume.grid import NetworkAxes
from tasks.volume.nifti import open_volume
from tasks.volume.scan import Scan

SAMPLE_VOXELS = 1 << 24  # about, of a sample by which intensities are found


@dataclass(frozen=True, eq=False)
class StoredVoxels:
    """The voxels of a scan, sliced as an array `(depth, height, width)`, in a process that may be another.

    Args:
        path: Of the scan, which every process that reads opens for itself.
        shape: Of the voxels.
        axes: Between file axes and network axes.
        level: Subtracted from all voxels.
    """

    path: Path
    shape: NetworkShape
    axes: NetworkAxes
    level: float = 0.0

    def __getitem__(self, window: tuple[slice, ...]) -> NDArray[np.float32]:
        """Read a window, float32."""
        sides = []
        for part, size, flipped in zip(window, self.shape, self.axes.flipped, strict=True):
            start, stop, _ = part.indices(size)
            sides.append(slice(size - stop, size - start) if flipped else slice(start, stop))
        depth, height, width = sides
        voxels = self.axes.to_network(open_volume(self.path).window(self.axes.of_network((depth, height, width))))
        return np.ascontiguousarray(voxels - np.float32(self.level) if self.level else voxels)


def sampled(scan: Scan) -> NDArray[np.float32]:
    """Read a regular sample of the voxels of a scan's only time point, `[i, j, k]`."""
    step = max(1, int(np.ceil((prod(scan.grid.shape) / SAMPLE_VOXELS) ** (1 / 3))))
    parts, start = [], 0
    for slab in scan.slabs():
        parts.append(slab[::step, ::step, -start % step :: step].copy())
        start += slab.shape[2]
    return np.concatenate(parts, axis=2)
