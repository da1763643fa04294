"""The only module that imports nibabel: volumes in from any format, NIfTI and OME-Zarr out."""

import io
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import category

import nibabel
import numpy as np
from indexed_gzip import IndexedGzipFile
from isal import igzip
from nibabel.arrayproxy import ArrayProxy
from nibabel.imageglobals import logger as nibabel_logger
from nibabel.openers import ImageOpener
from nibabel.quaternions import fillpositive
from nibabel.spatialimages import HeaderDataError, SpatialImage
from numpy.typing import DTypeLike, NDArray

from configs.axes import FileShape, triple
from configs.errors import InputError, ReadError
from tasks.files.atomic import replacing, require_replaceable
from tasks.files.compression import LEVEL, ForwardReader, check_packing, open_to_write
from tasks.files.outputs import time_point
from tasks.files.trees import ZARR_SUFFIX, file_digest, is_zarr
from tasks.volume.encoding import Encoding, choose_encoding
from tasks.volume.forms import written_qform
from tasks.volume.grid import Grid, GridError, covering_transform
from tasks.volume.itk import is_itk, open_itk
from tasks.volume.ome_zarr import FolderReader, open_zarr, require_writable, zarr_writer
from tasks.volume.scan import SLAB_VOXELS, Header, Scan, Volume, reading, space_and_time

__all__ = [
    "Volume",
    "anonymous_copy",
    "check_format",
    "display_copy",
    "open_single_volume",
    "open_volume",
    "output_encoding",
    "read_forward",
    "read_volume",
    "slab_writer",
    "write_slabs",
    "write_volume",
]

MIN_READ = 1 << 14  # bytes from a compressed file
NIFTI1_LIMIT = 32767  # voxels along an axis: sizes are int16 there
MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
FORMATS = {f"Nifti{n}Image": f"NIfTI-{n}" for n in (1, 2)} | {f"Nifti{n}Pair": f"NIfTI-{n} pair" for n in (1, 2)}
FORMATS |= {"MGHImage": "MGH", "Minc1Image": "MINC-1", "Minc2Image": "MINC-2", "AFNIImage": "AFNI"}
FORMATS |= {f"{kind}AnalyzeImage": "Analyze" for kind in ("", "Spm99", "Spm2")}
# Units of time in formats for which nibabel reports none.
TIME_UNITS = {"MGHHeader": "msec", "Minc1Header": "sec", "Minc2Header": "sec", "PARRECHeader": "sec"}
AFNI_TIME_UNITS = {77001: "msec", 77002: "sec", 77003: "hz"}
# NIfTI intents whose fourth axis is not time: matrices, displacements, vectors, point sets, triangles, quaternions;
# colours, with and without opacity.
VECTOR_INTENTS = (*range(1004, 1011), 2003, 2004)
MAX_QUATERNION_EXCESS = 1e-5  # of the squared length over 1, by rounding; nibabel allows 3.6e-7
KEPT_FIELDS = (
    *("descrip", "aux_file", "intent_code", "intent_name", "intent_p1", "intent_p2", "intent_p3"),
    *("cal_max", "cal_min", "toffset", "dim_info"),
)


def _open_gzip(path: str, mode: str = "rb", compresslevel: int = 1, mtime: int = 0, keep_open: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002 - as nibabel calls it
    """Open a compressed file for nibabel; its own opener reads megabytes for a header."""
    if mode != "rb":
        return ImageOpener.gz_def[0](path, mode, compresslevel, mtime, keep_open)
    return IndexedGzipFile(path, drop_handles=not keep_open, buffer_size=MIN_READ, readbuf_size=MIN_READ)


ImageOpener.compress_ext_map |= dict.fromkeys((".gz", ".mgz"), (_open_gzip, ImageOpener.gz_def[1]))


def _qform_quaternion(header: Any) -> NDArray[np.float64]:  # noqa: ANN401 - nibabel has no types
    """Return the quaternion of a header's qform; one that rounding has made longer than 1 is taken for a rotation."""
    imaginary = np.array([float(header[f"quatern_{axis}"]) for axis in "bcd"])
    if 0 < _quaternion_excess(header) <= MAX_QUATERNION_EXCESS:
        imaginary /= np.linalg.norm(imaginary)
    return np.asarray(fillpositive(imaginary, header.quaternion_threshold))


def _quaternion_excess(header: Any) -> float:  # noqa: ANN401 - nibabel has no types
    """Return by how much the square of the quaternion's imaginary part is over 1."""
    return sum(float(header[f"quatern_{axis}"]) ** 2 for axis in "bcd") - 1


nibabel.Nifti1Header.get_qform_quaternion = _qform_quaternion
# What nibabel logs about a header becomes a warning about the volume instead of a line on the terminal.
nibabel_logger.handlers[:] = [logging.NullHandler()]


def read_volume(path: Path) -> Volume:
    """Read a single volume.

    Raises:
        InputError: As `open_single_volume`, or the voxels cannot be read.
    """
    return open_single_volume(path).read()


def open_single_volume(path: Path) -> Scan:
    """Open a file of one volume, or one time point of a file, such as `series.nii.gz[3]`.

    Raises:
        InputError: As `open_volume`, or it holds several time points and none is chosen.
    """
    scan = open_volume(path)
    name, number = scan.path.name, scan.header.n_timepoints
    if number > 1:
        reason = f"a single volume is needed here, and it holds {number} time points"
        raise ReadError(name, reason, f"Choose one by its number: {name}[0] to {name}[{number - 1}].")
    return scan


def open_volume(path: Path) -> Scan:
    """Open a file, or one time point of it, such as `series.nii.gz[3]`, and interpret its header; no voxel is read.

    Raises:
        InputError: The file does not exist, is no readable image, or does not hold a volume of real numbers.
    """
    path, chosen = time_point(Path(path))
    # Bytes that are no text end the process within the library that gives random access to .gz.
    if any(category(character) in {"Cc", "Cs"} for character in str(path)):
        raise ReadError(path.name, "its path has bytes that are not text, or control characters", "Rename it.")
    if is_zarr(path):
        scan = open_zarr(path)
        _require_time_point(path, chosen, 1)
        return scan
    if not path.is_file():
        what = "it is a folder; name the volumes in it" if path.is_dir() else "there is no such file; check the path"
        raise ReadError(path.name, what)
    if is_itk(path):
        scan = open_itk(path)
        _require_time_point(path, chosen, scan.header.n_timepoints)
        return scan if chosen is None else replace(scan, header=replace(scan.header, n_timepoints=1), first=chosen)
    with reading(path) as warnings:
        check_packing(path)
        image = nibabel.load(path)
        if not isinstance(image, SpatialImage) or image.affine is None:
            raise ReadError(path.name, f"it holds a {type(image).__name__}, not a volume", "Give a file of voxels.")
        time_first = type(image).__name__.startswith("Minc")
        sizes = tuple(int(size) for size in image.shape)
        shape, n_timepoints = space_and_time(path, sizes, time_first=time_first)
        _refuse_vectors(path, image, n_timepoints)
        _require_time_point(path, chosen, n_timepoints)
        units = _units(image.header, warnings)
        in_mm = np.diag([*[MILLIMETRES.get(units[0], 1.0)] * 3, 1.0])
        stored, slope, inter = _storage(image)
        zooms = [float(zoom) for zoom in image.header.get_zooms()]
        zooms = [*zooms[-3:], *zooms[:-3]] if time_first else zooms
        qform, qcode = _form(image.header, "qform", in_mm, warnings)
        sform, scode = _form(image.header, "sform", in_mm, warnings)
        proxy = _data_after_header(image, warnings)
        try:
            grid = Grid(shape, in_mm @ image.affine)
        except GridError as error:
            raise ReadError(path.name, error.reason, "Correct its sform or qform.") from None
        if FORMATS.get(type(image).__name__) == "Analyze" and np.allclose(image.affine, image.header.get_best_affine()):
            warnings.append("the format stores no directions: which side is left is a guess")
        data = Path(image.file_map["image"].filename or path)
        if not data.is_file():
            reason = f"its voxels should be in {data.name}, and that is not there"
            raise ReadError(path.name, reason, "Put it next to the header.")
        data_bytes = proxy.offset + math.prod(sizes) * proxy.dtype.itemsize if isinstance(proxy, ArrayProxy) else 0
    header = Header(
        format=FORMATS.get(type(image).__name__, type(image).__name__.removesuffix("Image")),
        dtype=stored,
        slope=slope,
        inter=inter,
        n_timepoints=n_timepoints if chosen is None else 1,
        time_step=zooms[3] if len(zooms) > 3 else 0.0,
        units=units,
        zooms=triple(zoom * in_mm[0, 0] for zoom in zooms[:3]),
        qform=qform,
        sform=sform,
        codes=(qcode, scode),
        warnings=tuple(warnings),
        native=image.header,
        intent=int(image.header["intent_code"]) if isinstance(image.header, nibabel.Nifti1Header) else 0,
    )
    return Scan(path, grid, header, data, data_bytes, proxy, time_first, first=chosen or 0)


@contextmanager
def read_forward(scan: Scan) -> Iterator[tuple[Scan, ForwardReader | FolderReader]]:
    """Open the file of the voxels to read it once, slab after slab of one time point after another.

    Yields:
        The scan, to be read in order, and the reader of the file, for what follows the voxels and for its digest. MINC
        and PAR/REC order their voxels differently: those are read by path, and once more for the digest. So is a
        folder, which has no order.
    """
    if is_zarr(scan.data_path):
        yield scan, FolderReader(scan.data_path)
        return
    with reading(scan.path):
        reader = ForwardReader(scan.data_path)
    with reader:
        proxy = scan.source
        if isinstance(proxy, ArrayProxy):
            proxy = copy(proxy)
            proxy.file_like, proxy._mmap, proxy._persist_opener = reader, False, False
        yield replace(scan, source=proxy, forward=proxy is not scan.source), reader


def write_volume(
    path: Path,
    voxels: NDArray[np.float32],
    grid: Grid,
    like: Volume | Scan | None = None,
    dtype: DTypeLike | None = None,
) -> None:
    """Write a volume, `[i, j, k]`, as NIfTI; other arguments and errors as in `write_slabs`."""
    step = max(1, SLAB_VOXELS // (grid.shape[0] * grid.shape[1]))
    slabs = (voxels[:, :, start : start + step] for start in range(0, grid.shape[2], step))
    extent = None if dtype is None else (float(np.nanmin(voxels)), float(np.nanmax(voxels)))
    write_slabs(path, slabs, grid, like, dtype, extent)


def write_slabs(
    path: Path,
    slabs: Iterable[NDArray[np.float32]],
    grid: Grid,
    like: Volume | Scan | None = None,
    dtype: DTypeLike | None = None,
    extent: tuple[float, float] | None = None,
    n_timepoints: int = 1,
) -> str:
    """Write a volume from its slabs, in their order (`SlabWriter`); other arguments and errors as in `slab_writer`.

    Returns:
        SHA-256 of the file, from its bytes as they were written.
    """
    with slab_writer(path, grid, like, dtype, extent, n_timepoints) as writer:
        for slab in slabs:
            writer.write(slab)
    return writer.sha256


class SlabWriter:
    """Takes the slabs of a volume from its first plane to its last, then those of the next time point.

    Args:
        grid: Of the volume.
        encoding: Of its voxels.
        write: Writes bytes.
        digest: Returns the digest of what was written, once it is complete.
    """

    def __init__(
        self, grid: Grid, encoding: Encoding, write: Callable[[bytes], object], digest: Callable[[], str]
    ) -> None:
        self.planes = 0
        self._grid, self._encoding, self._write, self._digest = grid, encoding, write, digest

    def write(self, slab: NDArray[np.float32]) -> None:
        """Write a slab, `[i, j, planes]`."""
        self.write_stored(self._encoding.encode(slab))

    def write_stored(self, slab: NDArray[Any]) -> None:
        """Write a slab that is encoded, `[i, j, planes]`."""
        if slab.shape[:2] != self._grid.shape[:2]:
            raise ValueError(f"a slab of {slab.shape} does not fit a grid of {self._grid.shape}")
        self._write(slab.tobytes(order="F"))
        self.planes += slab.shape[2]

    @property
    def sha256(self) -> str:
        """Of the file, once it is complete, from its bytes as they were written; of OME-Zarr, from its files."""
        return self._digest()

    def require_complete(self, n_timepoints: int) -> None:
        """Check that all planes were written."""
        if self.planes != self._grid.shape[2] * n_timepoints:
            shape = self._grid.shape
            raise ValueError(f"{self.planes} planes do not fill {n_timepoints} time points of a grid of {shape}")


@contextmanager
def slab_writer(
    path: Path,
    grid: Grid,
    like: Volume | Scan | None = None,
    dtype: DTypeLike | None = None,
    extent: tuple[float, float] | None = None,
    n_timepoints: int = 1,
) -> Iterator[SlabWriter]:
    """Write a volume slab by slab, under a temporary name until it is complete; sform, qform and zooms agree.

    Args:
        path: Ends in `.nii` or `.nii.gz`, or in `.zarr` for OME-Zarr, which keeps of a header only its dtype.
        grid: Where the voxels lie; over the field of view of `like`, if given.
        like: What this volume was made from: its header, codes and dtype are kept.
        dtype: On disk; by default that of `like` if it is an integer (rounded, clipped at its ends), else float32.
        extent: Lowest and highest value, needed only to store floats as integers.
        n_timepoints: Time points.

    Raises:
        InputError: Volumes are not written under such a name or in that dtype.
    """
    path = Path(path)
    encoding = output_encoding(like, dtype, extent)
    check_format(path, like, dtype, extent, n_timepoints)
    if path.suffix == ZARR_SUFFIX:
        with zarr_writer(path, grid, encoding) as write_planes:
            writer = SlabWriter(grid, encoding, write_planes, lambda: file_digest(path))
            yield writer
            writer.require_complete(n_timepoints)
        return
    header, serialised = _nifti_header(grid, like, n_timepoints, encoding), io.BytesIO()
    header.write_to(serialised)
    with replacing(path) as partial, open_to_write(partial) as (write, file):
        write(serialised.getvalue().ljust(int(header["vox_offset"]), b"\0"))
        writer = SlabWriter(grid, encoding, write, file.sha256.hexdigest)
        yield writer
        writer.require_complete(n_timepoints)


def check_format(
    path: Path, like: Volume | Scan | None, dtype: DTypeLike | None, extent: tuple[float, float] | None, count: int
) -> None:
    """Check that a volume can be written under a name, before any work for it.

    Args:
        path: Names the format by its ending.
        like: As in `slab_writer`.
        dtype: As there.
        extent: As there.
        count: Time points.

    Raises:
        InputError: It cannot: another ending, or OME-Zarr does not hold it.
    """
    if path.suffix == ZARR_SUFFIX:
        require_writable(path, output_encoding(like, dtype, extent), count)
        require_replaceable(path)
    elif not path.name.endswith((".nii", ".nii.gz")):
        what = "volumes are written as NIfTI, .nii or .nii.gz, or as OME-Zarr, .zarr"
        raise InputError(f"Cannot write {path.name}: {what}.")


def output_encoding(
    like: Volume | Scan | None, dtype: DTypeLike | None, extent: tuple[float, float] | None
) -> Encoding:
    """Choose how a volume is stored; arguments and errors as in `slab_writer`."""
    before = like.header if like else None
    stored, slope, inter = (before.dtype, before.slope, before.inter) if before else (np.float32, 1.0, 0.0)
    return choose_encoding(stored, slope, inter, dtype, extent)


def anonymous_copy(source: Path, copy: Path) -> None:
    """Write voxels and geometry of a volume as NIfTI, without descriptions, file names and extensions of its header."""
    with read_forward(open_volume(source)) as (scan, _):
        bare, count = replace(scan, header=replace(scan.header, native=None)), scan.header.n_timepoints
        slabs = (slab for time in range(count) for slab in scan.slabs(time))
        write_slabs(copy, slabs, scan.grid, bare, n_timepoints=count)


def display_copy(steps: NDArray[np.uint8], grid: Grid, slope: float, inter: float) -> bytes:
    """Return a compressed NIfTI file of a volume at display precision.

    Args:
        steps: `[i, j, k]`.
        grid: Of the voxels.
        slope: Unit of the volume per step.
        inter: What a step of 0 means.
    """
    header = _nifti_header(grid, None, 1, Encoding("uint8", slope, inter))
    serialised = io.BytesIO()
    header.write_to(serialised)
    content = serialised.getvalue().ljust(int(header["vox_offset"]), b"\0") + steps.tobytes(order="F")
    compressed: bytes = igzip.compress(content, LEVEL, mtime=0)
    return compressed


def _nifti_header(grid: Grid, like: Volume | Scan | None, n_timepoints: int, encoding: Encoding) -> Any:  # noqa: ANN401 - untyped
    """Return the NIfTI header of a volume on `grid`, with what `like` says beyond geometry."""
    before = like.header if like else None
    native = before.native if before and isinstance(before.native, nibabel.Nifti1Header) else None
    large = max(*grid.shape, n_timepoints) > NIFTI1_LIMIT or isinstance(native, nibabel.Nifti2Header)
    kind = nibabel.Nifti2Header if large else nibabel.Nifti1Header
    header = kind(extensions=list(native.extensions) if native else ())
    if native is not None:
        for name in KEPT_FIELDS:
            header[name] = native[name]
    header.set_data_dtype(encoding.dtype)
    header.set_data_shape((*grid.shape, n_timepoints) if n_timepoints > 1 else grid.shape)
    header.set_zooms((*grid.spacing, before.time_step if before else 0.0) if n_timepoints > 1 else grid.spacing)
    space, time = before.units if before else ("mm", "unknown")
    header.set_xyzt_units(space if space == "unknown" else "mm", time)
    codes, qform = (before.codes, before.qform) if before else ((1, 1), None)
    # The two forms may say different things (scanner and atlas): each goes to the new grid by the same step.
    if like is not None and qform is not None:
        qform = qform @ covering_transform(like.grid.shape, grid.shape)
    header.set_qform(*written_qform(grid, qform, codes))
    header.set_sform(grid.affine, codes[1])
    header.set_slope_inter(encoding.slope, encoding.inter)
    header["vox_offset"] = header.single_vox_offset + header.extensions.get_sizeondisk()
    return header


def _data_after_header(image: SpatialImage, warnings: list[str]) -> Any:  # noqa: ANN401 - nibabel has no types
    """Return the source of the voxels; in a single-file NIfTI whose data offset is 0 they follow the header.

    The standard takes an offset below 352 (544 in NIfTI-2) for that; nibabel would read the header as voxels.
    """
    proxy = image.dataobj
    if isinstance(image, nibabel.Nifti1Image) and proxy.offset < image.header.single_vox_offset:
        proxy = copy(proxy)
        proxy._offset = image.header.single_vox_offset
        warnings.append(f"its data offset is {image.dataobj.offset}; the voxels are read from byte {proxy.offset} on")
    return proxy


def _require_time_point(path: Path, chosen: int | None, n_timepoints: int) -> None:
    """Refuse a chosen time point that a file does not have."""
    if chosen is not None and chosen >= n_timepoints:
        raise ReadError(path.name, f"it holds {n_timepoints} time point(s), numbered from 0, and no number {chosen}")


def _refuse_vectors(path: Path, image: SpatialImage, n_timepoints: int) -> None:
    """Refuse voxels that are not one real number, and MINC axes in another order than time before space."""
    axes = [str(name) for name in getattr(getattr(image.dataobj, "minc_file", None), "_dim_names", ())]
    if not all(name.endswith("space") for name in axes[-3:]) or axes[:-3] not in ([], ["time"]):
        raise ReadError(
            path.name,
            f"its axes are {', '.join(axes)}; three of space are needed, and at most one of time before them",
            "Reorder them with mincreshape.",
        )
    dtype = np.dtype(image.get_data_dtype())
    what = "complex numbers" if dtype.kind == "c" else "colours (RGB)" if dtype.names else ""
    native = image.header
    if n_timepoints > 1 and isinstance(native, nibabel.Nifti1Header) and int(native["intent_code"]) in VECTOR_INTENTS:
        what = "vectors or matrices"
    if n_timepoints > 1 and type(image).__name__ == "AFNIImage" and "TAXIS_NUMS" not in native.info:
        what = "vectors or statistics: it has several sub-bricks and no time axis"
    if what or dtype.kind not in "iuf":
        what = what or f"{dtype.name} values"
        reason = f"its voxels are {what}; one real number per voxel is needed"
        raise ReadError(path.name, reason, "Use the magnitude or one component first.")


def _storage(image: SpatialImage) -> tuple[np.dtype[Any], float, float]:
    """Return dtype, slope and intercept on disk; float32 where no single slope leads to the true values."""
    dtype, proxy = np.dtype(image.get_data_dtype()), image.dataobj
    if type(proxy) is ArrayProxy:
        return dtype, float(proxy.slope), float(proxy.inter)
    true = np.asarray(proxy[(slice(0, 1),) * len(image.shape)]).dtype
    return (dtype if true.kind in "iu" else np.dtype(np.float32)), 1.0, 0.0


def _units(native: Any, warnings: list[str]) -> tuple[str, str]:  # noqa: ANN401 - nibabel has no types
    if not hasattr(native, "get_xyzt_units"):
        afni = getattr(native, "info", {}).get("TAXIS_NUMS", ())
        known = TIME_UNITS.get(type(native).__name__, "unknown")
        return "mm", AFNI_TIME_UNITS.get(int(afni[2]), known) if len(afni) > 2 else known
    try:
        space, time = native.get_xyzt_units()
    except KeyError:
        warnings.append(f"the code {int(native['xyzt_units'])} names no unit; taken as millimetres")
        return "unknown", "unknown"
    return str(space), str(time)


def _form(
    native: Any,  # noqa: ANN401 - nibabel has no types
    name: str,
    in_mm: NDArray[np.float64],
    warnings: list[str],
) -> tuple[NDArray[np.float64] | None, int]:
    """Return qform or sform in mm, and its code: (None, 0) if it is not set or not valid, (None, 1) but for NIfTI."""
    if not isinstance(native, nibabel.Nifti1Header):
        return None, 1
    excess = _quaternion_excess(native)
    if name == "qform" and 3 * np.finfo(np.float32).eps < excess <= MAX_QUATERNION_EXCESS:
        warnings.append(f"the quaternion of the qform is longer than 1, its square by {excess:.1e}: taken as rounding")
    try:
        affine, code = getattr(native, f"get_{name}")(coded=True)
        return (None, 0) if affine is None else (Grid(FileShape(1, 1, 1), in_mm @ affine).affine, int(code))
    except (HeaderDataError, ValueError) as error:
        warnings.append(f"the {name} is not valid and is left out ({error})")
        return None, 0
