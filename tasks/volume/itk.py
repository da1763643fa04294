"""The only module that imports SimpleITK, an extra: NRRD and MetaImage files in.

ITK's world is LPS+, ours RAS+: the affine of a file has the signs of its first two rows changed.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.axes import triple
from configs.errors import ReadError
from tasks.volume.grid import Grid, GridError
from tasks.volume.scan import Header, Scan, reading, space_and_time

FORMATS = {".nrrd": "NRRD", ".nhdr": "NRRD", ".mha": "MetaImage", ".mhd": "MetaImage"}
DTYPES = {
    **{f"sitkUInt{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"sitkInt{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"sitkFloat{bits}": np.dtype(f"float{bits}") for bits in (32, 64)},
}
DATA_FILE = re.compile(rb"^(?:data ?file: *|ElementDataFile *= *)([^\r\n]+)", re.MULTILINE | re.IGNORECASE)
PACKED = re.compile(rb"^(?:encoding: *(?!raw)|CompressedData *= *True)", re.MULTILINE | re.IGNORECASE)
PACKED_SIZE = re.compile(rb"^CompressedDataSize *= *(\d+)", re.MULTILINE)
MAX_HEADER = 1 << 16  # bytes in which the fields above are looked for
DAMAGED = "it is damaged, incomplete, or in another format than its name says"


def is_itk(path: Path) -> bool:
    """Check by its name if a file is one of NRRD or MetaImage."""
    return path.suffix.lower() in FORMATS


def open_itk(path: Path) -> Scan:
    """Open an NRRD or MetaImage file and interpret its header; no voxel is read.

    Raises:
        InputError: SimpleITK is not installed, or the file is none, is damaged, or does not hold a volume of real
            numbers.
    """
    sitk = _simpleitk(path)
    with reading(path):
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            raise ReadError(path.name, DAMAGED, "Copy it again.") from None
        dtype = {getattr(sitk, name): dtype for name, dtype in DTYPES.items()}.get(reader.GetPixelIDValue())
        if dtype is None:
            what = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue())
            reason = f"its voxels are {what}; one real number per voxel is needed"
            raise ReadError(path.name, reason, "Use the magnitude or one component first.")
        sizes = tuple(map(int, reader.GetSize()))
        shape, n_timepoints = space_and_time(path, sizes, time_first=False)
        dimensions, steps = reader.GetDimension(), reader.GetSpacing()
        lps = np.eye(4)
        lps[:3, :3] = np.reshape(reader.GetDirection(), (dimensions, dimensions))[:3, :3] * steps[:3]
        lps[:3, 3] = reader.GetOrigin()[:3]
        try:
            grid = Grid(shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)
        except GridError as error:
            raise ReadError(path.name, error.reason, "Correct its directions or spacing.") from None
        data, data_bytes = _voxels_of(path, math.prod(sizes) * dtype.itemsize)
        no_space = FORMATS[path.suffix.lower()] == "NRRD" and "NRRD_space" not in reader.GetMetaDataKeys()
    header = Header(
        format=FORMATS[path.suffix.lower()],
        dtype=dtype,
        slope=1.0,
        inter=0.0,
        n_timepoints=n_timepoints,
        time_step=float(steps[3]) if n_timepoints > 1 else 0.0,
        units=("mm", "unknown"),
        zooms=triple(map(float, steps[:3])),
        qform=None,
        sform=None,
        codes=(1, 1),
        warnings=("the header names no space: which side is left is a guess",) if no_space else (),
        native=None,
    )
    return Scan(path, grid, header, data, data_bytes, _Voxels(path, sizes))


class _Voxels:
    """Voxels of a file, sliced like an array: read with the first slab, and released with the last."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._path = path
        self._read: NDArray[Any] | None = None

    def __getitem__(self, key: tuple[slice | int, ...]) -> NDArray[Any]:
        if self._read is None:
            sitk = _simpleitk(self._path)
            try:
                self._read = sitk.GetArrayFromImage(sitk.ReadImage(str(self._path))).T
            except RuntimeError:
                raise ReadError(self._path.name, DAMAGED, "Copy it again.") from None
        found, planes = self._read[key], key[2]
        is_last = isinstance(planes, slice) and (planes.stop is None or planes.stop >= self.shape[2])
        if is_last and all(number == size - 1 for number, size in zip(key[3:], self.shape[3:], strict=True)):
            self._read = None
        return found


def _simpleitk(path: Path) -> Any:  # noqa: ANN401 - SimpleITK has no types
    try:
        import SimpleITK  # noqa: PLC0415 - an extra
    except ImportError:
        reason = f"{FORMATS[path.suffix.lower()]} files are read by SimpleITK, which is not installed"
        raise ReadError(path.name, reason, "Install it with: pip install 'voxlift[itk]'.") from None
    return SimpleITK


def _voxels_of(path: Path, size: int) -> tuple[Path, int]:
    """Return the file that holds the voxels, and the bytes that it has at least; 0 if the header does not say."""
    with path.open("rb") as file:
        fields = file.read(MAX_HEADER)
    packed, packed_size, named = PACKED.search(fields), PACKED_SIZE.search(fields), DATA_FILE.search(fields)
    size = size if packed is None else int(packed_size[1]) if packed_size else 0
    name = named[1].strip().decode(errors="replace") if named else "LOCAL"
    if name.upper() == "LOCAL":
        return path, size
    if name.upper().startswith("LIST") or "%" in name:
        raise ReadError(path.name, "its voxels are in several files", "Save it as one file.")
    data = path.with_name(name) if Path(name).name == name else path.parent / name
    if not data.is_file():
        raise ReadError(path.name, f"its voxels should be in {data.name}, and that is not there", "Put it there.")
    return data, size
