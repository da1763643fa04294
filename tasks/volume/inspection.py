"""Inspection of volumes before any work: errors stop a volume with one message, warnings go to its record."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
from numpy.typing import NDArray

from configs.axes import triple
from configs.errors import InputError, ReadError
from tasks.files.compression import ForwardReader
from tasks.files.trees import file_digest
from tasks.volume.forms import MAX_SHEAR, equal_sizes, shear
from tasks.volume.grid import THICK, Grid, network_axes, slice_axis, slice_ratio
from tasks.volume.labels import ValueCounts, label_reason
from tasks.volume.nifti import open_volume, read_forward
from tasks.volume.scan import Header, Scan, Volume, reading

if TYPE_CHECKING:
    from tasks.imaging.through_plane import ThroughPlane

MAX_EXACT_FLOAT32 = 1 << 24  # larger whole numbers are not all float32
BAR = 64  # voxels across the bars whose spectra are found
LINE = 4  # finest voxels across a line of a bar: low frequencies across it show the most power
MIN_LINE = 20  # voxels along a line
WITHIN = 256  # voxels along the edges of the slices whose detail is compared with that across them
MAX_TRAILING_BYTES = 1 << 12  # after the voxels: padding, footers


Spectrum = NDArray[np.float64]
NO_SPECTRUM: Spectrum = np.zeros(0)


@dataclass(frozen=True)
class Extent:
    """Range of the voxels of a file.

    Args:
        lowest: Of the finite voxels, all time points.
        highest: Of the finite voxels.
        not_finite: How many voxels are NaN or infinite.
        constant_timepoints: Time points whose finite voxels are all equal.
        spectra: Mean power of lines along i, j and k through the middle of the first time point, for each frequency
            from 0 to Nyquist; empty along an axis of few voxels.
        values: Counts of the voxels, as far as they may be labels.
        through: Slice profile of a scan of thick slices, of its first time point; None for others.
    """

    lowest: float
    highest: float
    not_finite: int
    constant_timepoints: tuple[int, ...]
    spectra: tuple[Spectrum, Spectrum, Spectrum] = (NO_SPECTRUM,) * 3
    values: ValueCounts = field(default_factory=ValueCounts, repr=False)
    through: "ThroughPlane | None" = None


def all_finite(scan: Scan, first: NDArray[np.float32] | None = None) -> bool:
    """Read every voxel in order; returns whether none is NaN or infinite.

    Args:
        scan: Best from `read_forward`.
        first: Filled with the voxels of the first time point, `[i, j, k]`.
    """
    finite = True
    for time in range(scan.header.n_timepoints):
        start = 0
        for slab in scan.slabs(time):
            if time == 0 and first is not None:
                first[:, :, start : start + slab.shape[2]] = slab
            start += slab.shape[2]
            finite = finite and bool(np.isfinite(slab).all())
    return finite


def find_extent(scan: Scan) -> Extent:
    """Read every voxel in order and find the range.

    Args:
        scan: Best from `read_forward`.
    """
    lowest, highest, not_finite = np.inf, -np.inf, 0
    constant, values = [], ValueCounts()
    grid, thick = scan.grid, slice_ratio(scan.grid) > THICK
    windows = [_bar_window(grid.shape, axis, BAR) for axis in range(3)]
    if thick:
        windows.append(_bar_window(grid.shape, slice_axis(grid), WITHIN))
    pieces: list[list[NDArray[np.float32]]] = [[] for _ in windows]
    for time in range(scan.header.n_timepoints):
        low, high, start = np.inf, -np.inf, 0
        for slab in scan.slabs(time):
            stop = start + slab.shape[2]
            if time == 0:
                for (i, j, k), found in zip(windows, pieces, strict=True):
                    planes = slice(max(k.start - start, 0), max(min(k.stop, stop) - start, 0))
                    found.append(np.nan_to_num(slab[i, j, planes], posinf=0, neginf=0))
            start = stop
            finite = np.isfinite(slab)
            not_finite += slab.size - int(np.count_nonzero(finite))
            values.add(slab)
            low = min(low, float(slab.min(where=finite, initial=np.inf)))
            high = max(high, float(slab.max(where=finite, initial=-np.inf)))
        if low >= high:
            constant.append(time)
        lowest, highest = min(lowest, low), max(highest, high)
    bars = [np.concatenate(bar, axis=2) for bar in pieces]
    profile = _slice_profile(bars.pop(), grid) if thick else None
    return Extent(lowest, highest, not_finite, tuple(constant), _spectra(bars, grid.spacing), values, profile)


def _slice_profile(block: NDArray[np.float32], grid: Grid) -> "ThroughPlane | None":
    # SciPy takes longer to import than many a command to run, and most scans do not need it.
    from tasks.imaging.through_plane import through_plane  # noqa: PLC0415 - where it is used

    return through_plane(network_axes(grid).to_network(block), slice_ratio(grid))


def find_spectra(
    voxels: NDArray[np.float32], spacing: tuple[float, float, float]
) -> tuple[Spectrum, Spectrum, Spectrum]:
    """Find the spectra of `Extent` of voxels in memory, along their axes.

    Args:
        voxels: Finite, of any axes.
        spacing: Of the voxels, in any unit.
    """
    return _spectra([voxels[_bar_window(voxels.shape, axis, BAR)] for axis in range(3)], spacing)


def _spectra(
    bars: Sequence[NDArray[np.float32]], spacing: tuple[float, float, float]
) -> tuple[Spectrum, Spectrum, Spectrum]:
    lines = [max(1, round(LINE * min(spacing) / size)) for size in spacing]
    return triple(_spectrum(bar, axis, lines) for axis, bar in enumerate(bars))


def _bar_window(shape: tuple[int, ...], axis: int, across: int) -> tuple[slice, ...]:
    """The voxels of a bar along an axis through the middle, so many voxels across at most."""
    return tuple(
        slice(0, size)
        if a == axis
        else slice(max(0, (size - across) // 2), max(0, (size - across) // 2) + min(size, across))
        for a, size in enumerate(shape)
    )


def _spectrum(bar: NDArray[np.float32], axis: int, lines: Sequence[int]) -> Spectrum:
    """Return the mean power of the lines along an axis that are so many voxels thick."""
    others = [a for a in range(3) if a != axis]
    rows, columns = (lines[a] for a in others)
    along = bar.transpose(axis, *others)
    along = along[:, : along.shape[1] // rows * rows, : along.shape[2] // columns * columns]
    if len(along) < MIN_LINE or not along.size:
        return NO_SPECTRUM
    means = along.reshape(len(along), -1, rows, along.shape[2] // columns, columns).mean(axis=(2, 4), dtype=np.float64)
    return np.asarray(np.square(np.abs(np.fft.rfft(means, axis=0))).mean(axis=(1, 2)))


@dataclass(frozen=True, eq=False)
class InspectedVolume:
    """A volume whose file was read once, to its last byte.

    Args:
        scan: Its header and geometry, to read the voxels again.
        digests: SHA-256 of each of `scan.files`.
        extent: Range of the voxels.
        warnings: What is odd but does not prevent a restoration.
        labels: Why it is taken for a label map, as a noun phrase; empty for an image.
    """

    scan: Scan
    digests: tuple[str, ...]
    extent: Extent
    warnings: tuple[str, ...]
    labels: str = ""

    def require_unchanged(self) -> None:
        """Check that the files still have their digests.

        Raises:
            ReadError: One has changed since it was inspected.
        """
        if tuple(map(file_digest, self.scan.files)) != self.digests:
            raise ReadError(self.scan.path.name, "it was changed while it was in use", "Start again.")

    def volumes(self) -> Iterator[Volume]:
        """Read the file once more, one time point after another, with voxels that are NaN or infinite as they are.

        Raises:
            ReadError: Before the last time point: the file has changed since it was inspected.
        """
        last = self.scan.header.n_timepoints - 1
        with read_forward(self.scan) as (forward, reader):
            for time in range(last):
                yield forward.read(time, finite=False)
            volume = forward.read(last, finite=False)
            if reader.finish()[1] != self.digests[self.scan.files.index(self.scan.data_path)]:
                raise ReadError(self.scan.path.name, "it was changed while it was in use", "Start again.")
        yield volume


def inspect_volume(path: Path) -> InspectedVolume:
    """Read a volume once, to its last byte, and report what it is.

    Raises:
        InputError: It cannot be super-resolved: not found, damaged, no volume, without geometry, or without contrast.
    """
    path = Path(path)
    try:
        scan = open_volume(path)
    except InputError:
        if path.is_file():  # damage explains more than the header that it spoils
            with reading(path), ForwardReader(path) as reader:
                reader.finish()
        raise
    path = scan.path
    with read_forward(scan) as (forward, reader):
        try:
            if scan.data_bytes > (reader.limit if reader.compressed else reader.stored_size):
                raise ReadError(path.name, "its header declares more than it holds")
            if not scan.has_windows:
                require_memory(scan)
            extent = find_extent(forward)
        except ReadError:
            _require_all_bytes(scan, reader.finish()[0])
            raise
        size, digest = reader.finish()
        trailing = reader.trailing
    _require_all_bytes(scan, size)
    digests = {scan.data_path: digest}
    if path not in digests:
        with ForwardReader(path) as reader:
            digests[path] = reader.finish()[1]
    labels = label_reason(path.name, scan.header.intent, extent.values)
    extent = replace(extent, values=ValueCounts())  # megabytes, of no more use
    found = tuple(digests[file] for file in scan.files)
    return InspectedVolume(scan, found, extent, _warnings(scan, extent, size, trailing), labels)


def require_memory(scan: Scan) -> None:
    """Check that this machine can hold a time point of a scan as float32.

    Raises:
        ReadError: It cannot.
    """
    if scan.grid.mib > psutil.virtual_memory().total / 2**20:
        raise ReadError(
            scan.path.name,
            f"one time point takes {scan.grid.mib:.0f} MiB, more than this machine has",
            "Cut it, or use a machine with more.",
        )


def _require_all_bytes(scan: Scan, size: int) -> None:
    if size < scan.data_bytes:
        raise ReadError(
            scan.path.name,
            f"its header declares {scan.data_bytes} bytes (shape {'x'.join(map(str, scan.grid.shape))}, "
            f"{scan.header.n_timepoints} time point(s), {scan.header.dtype}), and the file holds {size}. It is"
            " truncated or its header is wrong; copy it again",
        )


def _warnings(scan: Scan, extent: Extent, size: int, after_stream: int) -> tuple[str, ...]:
    """List what is odd about a volume; refuse it if no time point has two different finite values.

    Args:
        scan: The volume.
        extent: Of its voxels.
        size: Bytes of its file, decompressed.
        after_stream: Bytes of its file after the compressed stream.
    """
    if len(extent.constant_timepoints) == scan.header.n_timepoints:
        what = f"every voxel is {extent.lowest:g}" if extent.lowest <= extent.highest else "no voxel is a finite number"
        raise InputError(
            f"Cannot use {scan.path.name}: it is an empty image, {what}; there is nothing to restore.", "Leave it out."
        )
    trailing = size - scan.data_bytes if scan.data_bytes and scan.data_path == scan.path else 0
    warnings = (
        list(scan.header.warnings) + _geometry_warnings(scan.grid, scan.header) + _voxel_warnings(scan.header, extent)
    )
    if trailing > MAX_TRAILING_BYTES and scan.header.format.startswith("NIfTI"):
        warnings.append(f"{trailing} bytes follow the voxels and are left out")
    if after_stream:
        warnings.append(f"{after_stream} bytes follow the compressed stream and are left out")
    return tuple(warnings)


def _geometry_warnings(grid: Grid, header: Header) -> list[str]:
    found = []
    if header.codes == (0, 0):
        found.append("neither qform nor sform is set: directions and origin are a guess")
    skew, other = shear(grid), header.qform if header.sform is not None else None
    if skew > MAX_SHEAR:
        found.append(f"the axes are sheared by {skew:.2g} degrees: no qform can hold that, only the sform does")
    if other is not None and not equal_sizes(grid, other):
        sizes = tuple(np.linalg.norm(other[:3, :3], axis=0).tolist())
        found.append(
            f"the qform has voxels of {_mm(sizes, 6)} and the sform of {_mm(grid.spacing, 6)}; the sform is used, and"
            " becomes the qform of outputs too"
        )
    elif other is not None and (apart := _apart(grid, other)) > min(grid.spacing) / 10:
        found.append(f"qform and sform differ by up to {apart:.3g} mm; the sform is used")
    elif other is None and not np.allclose(header.zooms, grid.spacing, rtol=0.01):
        found.append(
            f"the header's spacing {_mm(header.zooms)} is not the affine's {_mm(grid.spacing)}; the affine is used"
        )
    if header.units[0] in ("meter", "micron"):
        found.append(f"lengths are in {header.units[0]}s in the file and in millimetres in the output")
    if min(grid.spacing) < 0.01 or max(grid.spacing) > 50:
        found.append(f"a spacing of {_mm(grid.spacing)} is unusual: check the unit")
    single = [name for name, size in zip("ijk", grid.shape, strict=True) if size == 1]
    if single:
        found.append(f"there is one voxel along {' and '.join(single)}: nothing can be restored along it")
    return found


def _voxel_warnings(header: Header, extent: Extent) -> list[str]:
    found = []
    if extent.not_finite:
        found.append(f"{extent.not_finite} voxels are NaN or infinite: they hold no measurement and are not restored")
    if extent.constant_timepoints:
        found.append(f"{len(extent.constant_timepoints)} of {header.n_timepoints} time points are constant")
    if header.dtype.kind in "iu" and header.slope == 1 and max(-extent.lowest, extent.highest) > MAX_EXACT_FLOAT32:
        found.append(f"values up to {max(-extent.lowest, extent.highest):.3g} are held to 7 digits")
    return found


def _apart(grid: Grid, other: NDArray[np.float64]) -> float:
    """Return how far the corners of the field of view are apart under another affine, mm."""
    try:
        return float(np.linalg.norm(Grid(grid.shape, other).corners() - grid.corners(), axis=1).max())
    except InputError:
        return float("inf")


def _mm(lengths: tuple[float, ...], digits: int = 4) -> str:
    return "x".join(f"{length:.{digits}g}" for length in lengths) + " mm"
