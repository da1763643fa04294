"""Everything that is looked at before any work: errors stop a volume with one message, warnings go to its record."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from configs.axes import FileShape
from configs.errors import InputError
from tasks.files.compression import decompressed_size
from tasks.volume.grid import Grid, axis_codes, orientation, slice_axis
from tasks.volume.nifti import open_volume
from tasks.volume.scan import Header, Scan, reading

EXACT_FLOAT32 = 1 << 24  # whole numbers beyond are not all float32
SLACK = 1 << 12  # bytes after the voxels that are nobody's concern: padding, footers


@dataclass(frozen=True)
class Extent:
    """Statistics of the voxels of a file.

    Args:
        lowest: Of the finite voxels, all time points.
        highest: Of the finite voxels.
        not_finite: How many voxels are NaN or infinite.
        constant_times: Time points whose finite voxels are all equal.
    """

    lowest: float
    highest: float
    not_finite: int
    constant_times: tuple[int, ...]


@dataclass(frozen=True)
class Findings:
    """A volume as it is understood.

    Args:
        file: Its name.
        format: Of the file.
        shape: Voxels along (i, j, k).
        times: Time points.
        dtype: On disk.
        spacing: mm along (i, j, k).
        axes: Directions in which i, j and k grow, such as "RAS".
        slice_axis: "i", "j" or "k", across the slices.
        oblique: Largest angle between a file axis and its world axis, degrees.
        field_of_view: mm along (i, j, k).
        affine: 4x4, voxel → RAS+ mm.
        codes: Of qform and sform.
        lowest: Lowest finite value.
        highest: Highest finite value.
        not_finite: How many voxels are NaN or infinite.
        memory_mib: Of one time point as float32.
        warnings: What is odd but no obstacle.
    """

    file: str
    format: str
    shape: FileShape
    times: int
    dtype: str
    spacing: tuple[float, float, float]
    axes: str
    slice_axis: str
    oblique: float
    field_of_view: tuple[float, float, float]
    affine: list[list[float]] = field(repr=False)
    codes: tuple[int, int]
    lowest: float
    highest: float
    not_finite: int
    memory_mib: float
    warnings: tuple[str, ...]


def preflight(path: Path) -> Findings:
    """Read a volume to its last byte and report what it is.

    Raises:
        InputError: It cannot be super-resolved: missing, damaged, no volume, without geometry, or without contrast.
    """
    path = Path(path)
    held = _held(path) if path.is_file() else 0
    scan = open_volume(path)
    held = held if scan.data_path == path else _held(scan.data_path)
    if held < scan.data_bytes:
        raise InputError(
            f"Cannot read {path.name}: its header declares {scan.data_bytes} bytes (shape "
            f"{'x'.join(map(str, scan.grid.shape))}, {scan.header.times} time point(s), {scan.header.dtype}), and the "
            f"file holds {held}."
            f" It was cut short or its header is wrong; copy it again.",
        )
    if scan.grid.mib > psutil.virtual_memory().total / 2**20:
        raise InputError(
            f"Cannot read {path.name}: one time point takes {scan.grid.mib:.0f} MiB, more than this machine has.",
            "Cut it, or use a machine with more.",
        )
    extent = _extent(scan)
    grid, header = scan.grid, scan.header
    trailing = held - scan.data_bytes if scan.data_bytes and scan.data_path == path else 0
    warnings = [*header.remarks, *_geometry_warnings(grid, header), *_voxel_warnings(header, extent)]
    if trailing > SLACK and header.format.startswith("NIfTI"):
        warnings.append(f"{trailing} bytes follow the voxels and are left out")
    i, j, k = (size * step for size, step in zip(grid.shape, grid.spacing, strict=True))
    return Findings(
        file=path.name,
        format=header.format,
        shape=grid.shape,
        times=header.times,
        dtype=header.dtype.name,
        spacing=grid.spacing,
        axes=axis_codes(grid),
        slice_axis="ijk"[slice_axis(grid)],
        oblique=_oblique(grid),
        field_of_view=(i, j, k),
        affine=grid.affine.tolist(),
        codes=header.codes,
        lowest=extent.lowest,
        highest=extent.highest,
        not_finite=extent.not_finite,
        memory_mib=grid.mib,
        warnings=tuple(warnings),
    )


def _held(path: Path) -> int:
    with reading(path):
        if path.stat().st_size == 0:
            raise InputError(f"Cannot read {path.name}: the file is empty.", "Copy it again.")
        return decompressed_size(path)


def _extent(scan: Scan) -> Extent:
    """Read every voxel and note the range.

    Raises:
        InputError: No time point has two different finite values.
    """
    lowest, highest, not_finite = np.inf, -np.inf, 0
    constant = []
    for time in range(scan.header.times):
        low, high = np.inf, -np.inf
        for slab in scan.slabs(time):
            finite = np.isfinite(slab)
            not_finite += slab.size - int(np.count_nonzero(finite))
            low = min(low, float(slab.min(where=finite, initial=np.inf)))
            high = max(high, float(slab.max(where=finite, initial=-np.inf)))
        if low >= high:
            constant.append(time)
        lowest, highest = min(lowest, low), max(highest, high)
    if len(constant) == scan.header.times:
        what = f"every voxel is {lowest:g}" if lowest <= highest else "no voxel is a finite number"
        raise InputError(
            f"Cannot use {scan.path.name}: it is an empty image, {what}; there is nothing to restore.", "Leave it out."
        )
    return Extent(lowest, highest, not_finite, tuple(constant))


def _geometry_warnings(grid: Grid, header: Header) -> list[str]:
    said = []
    if header.codes == (0, 0):
        said.append("neither qform nor sform is set: directions and origin are a guess")
    if header.qform is not None and header.sform is not None:
        apart = _apart(grid, header.qform)
        if apart > min(grid.spacing) / 10:
            said.append(f"qform and sform differ by up to {apart:.3g} mm; the sform is used")
    skew = shear(grid)
    if skew > 0.1:
        said.append(f"the axes are sheared by {skew:.1f} degrees: no qform can hold that, only the sform does")
    if not np.allclose(header.zooms, grid.spacing, rtol=0.01):
        said.append(
            f"the header's spacing {_mm(header.zooms)} is not the affine's {_mm(grid.spacing)}; the affine is used"
        )
    if header.units[0] in ("meter", "micron"):
        said.append(f"lengths are in {header.units[0]}s in the file and in millimetres in the output")
    if min(grid.spacing) < 0.01 or max(grid.spacing) > 50:
        said.append(f"a spacing of {_mm(grid.spacing)} is unusual: check the unit")
    single = [name for name, size in zip("ijk", grid.shape, strict=True) if size == 1]
    if single:
        said.append(f"there is one voxel along {' and '.join(single)}: nothing can be restored along it")
    return said


def _voxel_warnings(header: Header, extent: Extent) -> list[str]:
    said = []
    if extent.not_finite:
        said.append(f"{extent.not_finite} voxels are NaN or infinite; they are read as the lowest value")
    if extent.constant_times:
        said.append(f"{len(extent.constant_times)} of {header.times} time points are constant")
    if header.dtype.kind in "iu" and header.slope == 1 and max(-extent.lowest, extent.highest) > EXACT_FLOAT32:
        said.append(f"values up to {max(-extent.lowest, extent.highest):.3g} are held to 7 digits")
    return said


def shear(grid: Grid) -> float:
    """Return by how many degrees the angle between two axes differs from a right one, at most.

    >>> round(shear(Grid(FileShape(2, 2, 2), np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))))
    45
    """
    axes = grid.affine[:3, :3] / grid.spacing
    cosines = np.abs(axes.T @ axes)[np.triu_indices(3, 1)]
    return float(np.degrees(np.arcsin(min(1.0, cosines.max()))))


def _oblique(grid: Grid) -> float:
    worlds, _ = orientation(grid)
    cosines = [abs(grid.affine[world, axis]) / grid.spacing[axis] for axis, world in enumerate(worlds)]
    return float(np.degrees(np.arccos(min(1.0, *cosines))))


def _apart(grid: Grid, other: NDArray[np.float64]) -> float:
    """Return how far the corners of the field of view are apart under another affine, mm."""
    try:
        return float(np.linalg.norm(Grid(grid.shape, other).corners() - grid.corners(), axis=1).max())
    except InputError:
        return float("inf")


def _mm(lengths: tuple[float, ...]) -> str:
    return "x".join(f"{length:.4g}" for length in lengths) + " mm"
