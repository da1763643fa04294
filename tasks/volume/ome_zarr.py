"""The only module that imports zarr, an extra: OME-Zarr 0.5 images in and out.

An image is a Zarr group whose attributes place its array in the world by a scale and a translation along each axis. The
array has the axes (z, y, x), which are the file axes (k, j, i): the bytes of a chunk are in the order of NIfTI.

Version 0.5 holds no rotation and no anatomical directions. The group keeps the affine in full in an attribute of its
own, `voxlift`; scale and translation give the spacing and keep the centre of the field of view, which is all that there
is to an affine without rotation. A file without that attribute is taken to have x, y and z in RAS+, unless its axes
carry `orientation` (RFC-4).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from configs.axes import FileShape
from configs.errors import InputError, ReadError
from tasks.files.atomic import replacing_folder
from tasks.files.trees import file_digest, stored_size
from tasks.volume.encoding import Encoding
from tasks.volume.grid import Grid, GridError
from tasks.volume.scan import Header, Scan, reading

VERSION = "0.5"
LEVEL = "0"  # name of the array that is written
CHUNK = (32, 128, 128)  # voxels along (k, j, i), at most
MAX_ROW_BYTES = 64 << 20  # of the chunks that hold a plane, which are collected before they are written
MILLIMETRES = {"nanometer": 1e-6, "micrometer": 1e-3, "millimeter": 1.0, "centimeter": 10.0, "meter": 1000.0}
# By RFC-4: the world axis, RAS+, and the direction in which an axis runs along it.
ORIENTATIONS = {
    "left-to-right": (0, 1),
    "right-to-left": (0, -1),
    "posterior-to-anterior": (1, 1),
    "anterior-to-posterior": (1, -1),
    "inferior-to-superior": (2, 1),
    "superior-to-inferior": (2, -1),
}
CLOSE = 1e-5  # of a voxel, by which positions that were computed twice may differ
CONVERT = "Convert it to OME-Zarr 0.5 with one image, or to NIfTI."


class _Part(BaseModel):
    """Part of the metadata of OME-Zarr; keys that are not named are left out."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, extra="ignore")


class _Orientation(_Part):
    value: str


class _Axis(_Part):
    name: str
    type: str | None = None
    unit: str | None = None
    orientation: _Orientation | None = None


class _Transformation(_Part):
    type: str
    scale: tuple[float, ...] | None = None
    translation: tuple[float, ...] | None = None


class _Dataset(_Part):
    path: str
    transformations: tuple[_Transformation, ...] = Field(alias="coordinateTransformations")


class _Image(_Part):
    axes: tuple[_Axis, ...]
    datasets: tuple[_Dataset, ...] = Field(min_length=1)
    transformations: tuple[_Transformation, ...] = Field((), alias="coordinateTransformations")


class _Metadata(_Part):
    version: str = ""
    multiscales: tuple[_Image, ...] = ()
    label: dict[str, Any] | None = Field(None, alias="image-label")


class _Kept(_Part):
    """The attribute `voxlift`: the affine of the voxels `(i, j, k)`, 4x4, RAS+ millimetres."""

    affine: tuple[tuple[float, float, float, float], ...] = Field(min_length=4, max_length=4)


def open_zarr(path: Path) -> Scan:
    """Open an OME-Zarr image and interpret its metadata; no voxel is read.

    Raises:
        ReadError: zarr is not installed, or the folder is no OME-Zarr 0.5 image of one volume of real numbers.
    """
    zarr = _zarr(path, "read")
    if (path / ".zgroup").is_file() or (path / ".zarray").is_file():
        raise ReadError(path.name, "it is Zarr version 2 (OME-Zarr up to 0.4), and version 3 is needed", CONVERT)
    if not (path / "zarr.json").is_file():
        raise ReadError(path.name, "it is no Zarr group: it holds no zarr.json", "Check the path, or copy it again.")
    with reading(path) as warnings:
        node = zarr.open(store=path, mode="r", zarr_format=3)
        if isinstance(node, zarr.Array):
            raise ReadError(path.name, "it is a bare array, which does not say where its voxels lie", CONVERT)
        image = _image(path, dict(node.attrs))
        finest = image.datasets[0]
        array = node.get(finest.path)
        if not isinstance(array, zarr.Array):
            raise ReadError(path.name, f"its array {finest.path} is not there", "Copy it again.")
        if array.dtype.kind not in "iuf":
            reason = f"its voxels are {array.dtype} values; one real number per voxel is needed"
            raise ReadError(path.name, reason, "Use the magnitude or one component first.")
        extra = _extra_axes(path, image, array.shape)
        shape = FileShape(*(int(size) for size in reversed(array.shape[extra:])))
        grid = _grid(path, image, node.attrs.get("voxlift"), shape, warnings)
        if len(image.datasets) > 1:
            warnings.append(f"it holds {len(image.datasets)} levels; the finest is used")
        if missing := array.nchunks - array.nchunks_initialized:
            warnings.append(f"{missing} of {array.nchunks} chunks are not stored and count as {array.fill_value}")
    header = Header(
        format=f"OME-Zarr {VERSION}",
        dtype=array.dtype,
        slope=1.0,
        inter=0.0,
        n_timepoints=1,
        time_step=0.0,
        units=("mm", "unknown"),
        zooms=grid.spacing,
        qform=None,
        sform=None,
        codes=(1, 1),
        warnings=tuple(warnings),
        native=None,
    )
    return Scan(path, grid, header, path, 0, _Voxels(array, extra))


class FolderReader:
    """Stands for `ForwardReader` where the voxels are in a folder, which is read by its chunks.

    Args:
        path: Of the folder.
    """

    compressed = False
    limit = trailing = 0

    def __init__(self, path: Path) -> None:
        self._path, self.stored_size = path, stored_size(path)

    def finish(self) -> tuple[int, str]:
        """Return the bytes of all files, and their SHA-256 as `file_digest` gives it."""
        return stored_size(self._path), file_digest(self._path)


class _Voxels:
    """Voxels of an array `(…, k, j, i)`, sliced as `(i, j, k)`; it keeps the last row of chunks, to read each once.

    Args:
        array: Of zarr.
        extra: Leading axes of one element.
    """

    def __init__(self, array: Any, extra: int) -> None:  # noqa: ANN401 - zarr
        self.shape = tuple(int(size) for size in reversed(array.shape[extra:]))
        self._array, self._first = array, (0,) * extra
        self._depth = int((array.shards or array.chunks)[extra])
        self._keeps = self._depth * self.shape[0] * self.shape[1] * array.dtype.itemsize <= MAX_ROW_BYTES
        self._kept: tuple[int, NDArray[Any]] | None = None

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        planes = key[2]
        whole = all(part.indices(size)[:2] == (0, size) for part, size in zip(key[:2], self.shape, strict=False))
        if not (whole and self._keeps):
            return self._read(planes, key[1], key[0]).T
        start, stop, _ = planes.indices(self.shape[2])
        rows = range(start // self._depth, max(start, stop - 1) // self._depth + 1)
        parts = []
        for row in rows:
            low = row * self._depth
            if self._kept is None or self._kept[0] != row:
                self._kept = row, self._read(slice(low, min(low + self._depth, self.shape[2])))
            parts.append(self._kept[1][max(start - low, 0) : stop - low])
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)).T

    def _read(self, *window: slice) -> NDArray[Any]:
        return np.asarray(self._array[(*self._first, *window)])


class ArrayWriter:
    """Writes the planes of a volume in whole chunks: no chunk is written twice.

    Args:
        array: Of zarr, `(k, j, i)`.
    """

    def __init__(self, array: Any) -> None:  # noqa: ANN401 - zarr
        self._array, self._start, self._pending = array, 0, bytearray()
        self._plane = prod(array.shape[1:]) * array.dtype.itemsize

    def write(self, data: bytes) -> None:
        """Take the bytes of whole planes."""
        self._pending.extend(data)
        row = self._plane * self._array.chunks[0]
        while len(self._pending) >= row:
            self._store(row)

    def finish(self) -> None:
        """Write the planes that fill no chunk."""
        if self._pending:
            self._store(len(self._pending))

    def _store(self, size: int) -> None:
        stop = self._start + size // self._plane
        planes = np.frombuffer(self._pending, self._array.dtype, size // self._array.dtype.itemsize)
        self._array[self._start : stop] = planes.reshape(-1, *self._array.shape[1:])
        self._start, self._pending = stop, self._pending[size:]


@contextmanager
def zarr_writer(path: Path, grid: Grid, encoding: Encoding) -> Iterator[Callable[[bytes], None]]:
    """Write a volume as OME-Zarr, under a temporary name until it is complete.

    Args:
        path: Ends in `.zarr`.
        grid: Of the volume.
        encoding: Of its voxels, without slope and intercept.

    Yields:
        A function that takes the bytes of whole planes, from the first to the last, i fastest.

    Raises:
        InputError: zarr is not installed, or the encoding has a slope.
    """
    require_writable(path, encoding, 1)
    zarr = _zarr(path, "write")
    dtype = np.dtype(encoding.dtype)
    shape = tuple(reversed(grid.shape))
    depth = max(1, min(CHUNK[0], MAX_ROW_BYTES // (shape[1] * shape[2] * dtype.itemsize)))
    chunks = tuple(map(min, zip(shape, (depth, *CHUNK[1:]), strict=True)))
    with replacing_folder(path) as partial:
        group = zarr.create_group(partial, zarr_format=3, attributes=_attributes(grid))
        array = group.create_array(
            LEVEL,
            shape=shape,
            dtype=dtype,
            chunks=chunks,
            dimension_names=("z", "y", "x"),
            config={"write_empty_chunks": True},  # a chunk that is lost is not taken for air
        )
        writer = ArrayWriter(array)
        yield writer.write
        writer.finish()


def require_writable(path: Path, encoding: Encoding, n_timepoints: int) -> None:
    """Check that OME-Zarr holds a volume, before any work for it.

    Raises:
        InputError: It does not, or zarr is not installed.
    """
    _zarr(path, "write")
    if n_timepoints > 1:
        raise InputError(
            f"Cannot write {path.name}: OME-Zarr is written of one volume, and the input has {n_timepoints} time"
            " points.",
            "Choose one, as in series.nii.gz[0], or write NIfTI.",
        )
    if (encoding.slope, encoding.inter) != (1, 0):
        raise InputError(
            f"Cannot write {path.name} as {encoding.dtype}: OME-Zarr holds no slope, and the input has one of"
            f" {encoding.slope:g} with intercept {encoding.inter:g}.",
            "Choose the data type float32, or write NIfTI.",
        )


def _attributes(grid: Grid) -> dict[str, Any]:
    """Return the attributes of the group of a volume; without its name, so that equal volumes are equal files."""
    scale, translation = _transformations(grid)
    axes = [{"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"]
    steps = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": translation}]
    image = {
        "axes": axes,
        "datasets": [{"path": LEVEL, "coordinateTransformations": steps}],
    }
    return {"ome": {"version": VERSION, "multiscales": [image]}, "voxlift": {"affine": grid.affine.tolist()}}


def _transformations(grid: Grid) -> tuple[list[float], list[float]]:
    """Return scale and translation along (z, y, x): the spacing, and the place that keeps the centre."""
    centre = grid.world(np.array([(np.array(grid.shape) - 1) / 2]))[0]
    spacing = np.array(grid.spacing)
    first = centre - spacing * (np.array(grid.shape) - 1) / 2
    return spacing[::-1].tolist(), first[::-1].tolist()


def _placed(shape: FileShape, scale: list[float], translation: list[float]) -> Grid:
    affine = np.diag([*reversed(scale), 1.0])
    affine[:3, 3] = translation[::-1]
    return Grid(shape, affine)


def _same_place(grid: Grid, other: Grid) -> bool:
    return bool(np.abs(grid.corners() - other.corners()).max() <= CLOSE * min(grid.spacing))


def _image(path: Path, attributes: dict[str, Any]) -> _Image:
    """Return the metadata of the image of a group."""
    found = attributes.get("ome")
    if not isinstance(found, dict):
        raise ReadError(path.name, "it is a Zarr group without OME metadata", CONVERT)
    try:
        metadata = _Metadata.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ReadError(path.name, f"its OME metadata are not valid at {where}: {first['msg']}", CONVERT) from None
    if metadata.version != VERSION:
        reason = f"it is OME-Zarr {metadata.version or 'of no version'}, and {VERSION} is read"
        raise ReadError(path.name, reason, CONVERT)
    if metadata.label is not None:
        raise ReadError(path.name, "it is a label image of OME-Zarr, and images are read", "Convert it to NIfTI.")
    if len(metadata.multiscales) != 1:
        reason = f"it holds {len(metadata.multiscales)} images, and one is needed"
        raise ReadError(path.name, reason, "Name the folder of one image in it.")
    return metadata.multiscales[0]


def _extra_axes(path: Path, image: _Image, sizes: tuple[int, ...]) -> int:
    """Return the number of axes before those of space; they must have one element."""
    names = [axis.name for axis in image.axes]
    extra = len(names) - 3
    space = [axis.type == "space" for axis in image.axes]
    if space != [False] * extra + [True] * 3 or len(names) != len(sizes):
        shown = ", ".join(f"{axis.name} ({axis.type or 'no type'})" for axis in image.axes)
        reason = f"its {len(sizes)} axes are {shown}; three of space are needed, in the last places"
        raise ReadError(path.name, reason, "Reorder its axes, or correct their types.")
    several = [f"{size} along {name}" for name, size in zip(names[:extra], sizes, strict=False) if size != 1]
    if several:
        reason = f"one volume is needed, and it holds {' and '.join(several)}"
        raise ReadError(path.name, reason, "Write one time point and one channel as an image of its own.")
    if min(sizes) < 1:
        raise ReadError(path.name, f"its shape is {'x'.join(map(str, sizes))}", "Check how it was made.")
    return extra


def _grid(path: Path, image: _Image, kept: object, shape: FileShape, warnings: list[str]) -> Grid:
    """Place the voxels in the world."""
    count = len(image.axes)
    scale, translation = _scale_and_translation(path, image)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for place, axis in enumerate(image.axes[-3:], start=count - 3):
        row, sign = _direction(path, axis, count - 1 - place)
        unit = 1.0 if axis.unit is None else MILLIMETRES.get(axis.unit)
        if unit is None:
            reason = f"the unit of its axis {axis.name} is {axis.unit}; known are {', '.join(MILLIMETRES)}"
            raise ReadError(path.name, reason, "Correct it.")
        affine[row, count - 1 - place] = sign * unit * scale[place]
        affine[row, 3] = sign * unit * translation[place]
    if any(axis.unit is None for axis in image.axes[-3:]):
        warnings.append("its axes have no unit; taken as millimetres")
    try:
        grid = Grid(shape, affine)
        if kept is None:
            if not any(axis.orientation for axis in image.axes):
                warnings.append("the axes have no anatomical directions: which side is left is a guess")
            return grid
        own = Grid(shape, np.array(_Kept.model_validate(kept).affine))
    except GridError as error:
        raise ReadError(path.name, error.reason, "Correct its coordinate transformations.") from None
    except ValidationError:
        raise ReadError(path.name, "its attribute voxlift holds no affine", "Correct it, or remove it.") from None
    if not _same_place(grid, _placed(shape, *_transformations(own))):
        reason = "its attribute voxlift holds an affine of another size or place than its coordinate transformations"
        raise ReadError(path.name, reason, "Remove that attribute if the image was cropped or resampled.")
    return own


def _scale_and_translation(path: Path, image: _Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compose the transformations of the finest level and of the image, along all axes."""
    count = len(image.axes)
    scale, translation = np.ones(count), np.zeros(count)
    for step in (*image.datasets[0].transformations, *image.transformations):
        factors, offsets = step.scale or (1.0,) * count, step.translation or (0.0,) * count
        known = {"scale": step.scale, "translation": step.translation, "identity": True}.get(step.type)
        if not known or len(factors) != count or len(offsets) != count:
            reason = f"its coordinate transformation {step.type} is no scale or translation of {count} numbers"
            raise ReadError(path.name, reason, CONVERT)
        scale, translation = scale * factors, translation * factors + offsets
    return scale, translation


def _direction(path: Path, axis: _Axis, place: int) -> tuple[int, int]:
    """Return the world axis along which a file axis runs, and in which direction."""
    if axis.orientation is None:
        name = axis.name.lower()
        return ("xyz".index(name) if name in ("x", "y", "z") else place), 1
    if axis.orientation.value not in ORIENTATIONS:
        reason = f"the orientation of its axis {axis.name}, {axis.orientation.value}, is no anatomical direction"
        raise ReadError(path.name, reason, f"Use one of {', '.join(ORIENTATIONS)}.")
    return ORIENTATIONS[axis.orientation.value]


def _zarr(path: Path, use: str) -> Any:  # noqa: ANN401 - an extra
    try:
        import zarr  # noqa: PLC0415 - an extra
    except ImportError:
        raise InputError(
            f"Cannot {use} {path.name}: OME-Zarr is read and written by zarr, which is not installed.",
            "Install it with: pip install 'voxlift[zarr]'.",
        ) from None
    return zarr
