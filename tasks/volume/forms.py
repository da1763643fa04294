"""The rule by which qform and sform are written: the sform leads where its code is set, and the qform agrees with it.

Both forms of a NIfTI file share one set of voxel sizes, `pixdim`. A qform of the same voxel sizes as the sform is kept:
scanner and atlas may be two worlds. One of other sizes is replaced by the sform, with its code. Where the axes are
sheared, which no qform can hold, its code is 0. Reading follows the same rule.
"""

import numpy as np
from numpy.typing import NDArray

from tasks.volume.grid import Grid

EQUAL_SIZE = 1e-4  # relative difference of voxel sizes that are the same
MAX_SHEAR = 0.01  # degrees that a qform may leave out: a twentieth of a voxel over 256


def written_qform(
    grid: Grid, qform: NDArray[np.float64] | None, codes: tuple[int, int]
) -> tuple[NDArray[np.float64], int]:
    """Return the qform to write, 4x4, and its code.

    Args:
        grid: That the sform describes, or the qform where no sform is set.
        qform: On the same voxels; None where none is set.
        codes: Of qform and sform.
    """
    if shear(grid) > MAX_SHEAR:
        return grid.affine, 0
    if qform is None or not codes[1]:
        return grid.affine, codes[0]
    if not equal_sizes(grid, qform):
        return grid.affine, codes[1]
    kept = qform.copy()
    kept[:3, :3] *= np.divide(grid.spacing, np.linalg.norm(qform[:3, :3], axis=0))
    return kept, codes[0]


def equal_sizes(grid: Grid, qform: NDArray[np.float64]) -> bool:
    """Return whether the voxels of a qform are those of a grid in size."""
    return np.allclose(np.linalg.norm(qform[:3, :3], axis=0), grid.spacing, rtol=EQUAL_SIZE, atol=0)


def shear(grid: Grid) -> float:
    """Return by how many degrees the angle between two axes differs from a right one, at most.

    >>> from configs.axes import FileShape
    >>> round(shear(Grid(FileShape(2, 2, 2), np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))))
    45
    """
    axes = grid.affine[:3, :3] / grid.spacing
    cosines = np.abs(axes.T @ axes)[np.triu_indices(3, 1)]
    return float(np.degrees(np.arcsin(min(1.0, cosines.max()))))
