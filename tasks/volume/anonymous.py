"""Copies of volumes that say where their voxels lie and nothing of whose they are."""

from dataclasses import replace
from pathlib import Path

from tasks.volume.nifti import open_volume, write_slabs


def anonymous_copy(source: Path, copy: Path) -> None:
    """Write the voxels and the geometry of a volume, without descriptions, file names and extensions of its header.

    Args:
        source: Any volume.
        copy: Ends in `.nii` or `.nii.gz`.
    """
    scan = open_volume(source)
    times = scan.header.times
    bare = replace(scan, header=replace(scan.header, native=None))
    write_slabs(copy, (slab for time in range(times) for slab in scan.slabs(time)), scan.grid, like=bare, times=times)
