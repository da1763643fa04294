"""A scan: the grid and header of a file, and its voxels on demand."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock, get_ident
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from configs.axes import FileShape
from configs.errors import InputError, ReadError
from tasks.files.compression import is_compressed
from tasks.files.trees import is_zarr
from tasks.volume.grid import Grid

Voxels = NDArray[np.float32]

SLAB_VOXELS = 1 << 22
MAX_TIMEPOINTS = 100_000  # a damaged or hostile header would keep the check of a file busy for hours


class WarningsByThread:
    """Collects warnings, which belong to the process, for the reader in whose thread they are raised."""

    def __init__(self) -> None:
        self._lock, self._catching = Lock(), ExitStack()
        self._readers: dict[int, list[list[str]]] = {}  # by thread, the innermost last

    @contextmanager
    def collected(self, messages: list[str]) -> Iterator[None]:
        """Append the warnings of this thread to a list until the block ends; other threads' are shown as ever."""
        thread = get_ident()
        with self._lock:
            if not self._readers:
                self._catch()
            self._readers.setdefault(thread, []).append(messages)
        try:
            yield
        finally:
            with self._lock:
                inner = self._readers.pop(thread)
                if outer := [reader for reader in inner if reader is not messages]:
                    self._readers[thread] = outer
                if not self._readers:
                    self._catching.close()

    def _catch(self) -> None:
        self._catching.enter_context(warnings.catch_warnings())
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ResourceWarning)  # nibabel leaves .mgh files to the garbage collector
        show = warnings.showwarning

        def collect(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if readers := self._readers.get(get_ident()):
                readers[-1].append(str(message))
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = collect


WARNINGS = WarningsByThread()


@dataclass(frozen=True, eq=False)
class Header:
    """Content of a file beyond its voxels and its grid.

    Args:
        format: "NIfTI-1", "MGH", …
        dtype: On disk, with its byte order; float32 where no single slope leads from stored to true values.
        slope: Unit of the volume per stored step.
        inter: What a stored 0 means.
        n_timepoints: Time points; 1 for a 3D volume.
        time_step: Between time points, in `units[1]`; 0 if the file says none.
        units: Of space and time, as the file says: ("mm", "sec"), ("micron", "unknown"), …
        zooms: Spacing in mm, as the header says; it may disagree with the affine.
        qform: 4x4 in mm; None where its code is 0 or the format has none.
        sform: The same.
        codes: Of qform and sform; (1, 1) for formats that have none.
        warnings: What the reader found odd and fixed.
        native: The reader's own header; opaque.
        intent: Code of the NIfTI intent; 0 for formats that have none.
    """

    format: str
    dtype: np.dtype[Any]
    slope: float
    inter: float
    n_timepoints: int
    time_step: float
    units: tuple[str, str]
    zooms: tuple[float, float, float]
    qform: NDArray[np.float64] | None
    sform: NDArray[np.float64] | None
    codes: tuple[int, int]
    warnings: tuple[str, ...]
    native: Any = field(repr=False)
    intent: int = 0


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3D image in the world.

    Args:
        voxels: float32 `[i, j, k]`, in the unit of the file after slope and intercept.
        grid: Where the voxels lie.
        header: What the file says beyond that, for writing back; None for a volume that comes from no file.
    """

    voxels: NDArray[np.float32]
    grid: Grid
    header: Header | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Scan:
    """An opened file: one volume, or several time points on one grid.

    Args:
        path: The file.
        grid: Of every time point.
        header: What the file says beyond that.
        data_path: The file that holds the voxels; another than `path` in a pair.
        data_bytes: Least size of `data_path`, decompressed, by the header; 0 if the format does not say.
        source: Sliced to read; axes (i, j, k, time) or, where `time_first`, (time, i, j, k).
        time_first: Of `source`.
        forward: Whether `source` reads one opened file from start to end, as slabs in order require.
        first: Index in `source` of the first time point; above 0 only where one of several was chosen.
    """

    path: Path
    grid: Grid
    header: Header
    data_path: Path
    data_bytes: int
    source: Any = field(repr=False)
    time_first: bool = False
    forward: bool = False
    first: int = 0

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold header and voxels, in the order of their names."""
        return tuple(sorted({self.path, self.data_path}))

    def slab(self, start: int, stop: int, time: int = 0) -> NDArray[np.float32]:
        """Read the planes `start..stop` along k of one time point: float32 `[i, j, stop - start]`."""
        key: tuple[slice | int, ...] = (slice(None), slice(None), slice(start, stop))
        if len(self.source.shape) > 3:
            rest = (self.first + time,) + (0,) * (len(self.source.shape) - 4)
            key = rest + key if self.time_first else key + rest
        with reading(self.path), np.errstate(all="ignore"):
            return np.asarray(self.source[key]).astype(np.float32)

    @property
    def has_windows(self) -> bool:
        """True for a file of one volume of which a window can be read without what lies around it."""
        in_place = is_zarr(self.data_path) or (self.data_bytes > 0 and self.data_path.suffix == ".nii")
        return in_place and self.header.n_timepoints == 1

    def window(self, sides: tuple[slice, slice, slice]) -> NDArray[np.float32]:
        """Read a window of the only time point: float32 `[i, j, k]`."""
        rest = (self.first,) + (0,) * (len(self.source.shape) - 4) if len(self.source.shape) > 3 else ()
        with reading(self.path), np.errstate(all="ignore"):
            return np.asarray(self.source[(*sides, *rest)]).astype(np.float32)

    def slabs(self, time: int = 0) -> Iterator[NDArray[np.float32]]:
        """Read one time point from its first plane to its last, slab by slab: float32 `[i, j, planes]` each."""
        i, j, planes = self.grid.shape
        # Only .gz has random access: anything else that is compressed would be decompressed anew for every slab.
        with reading(self.path):
            whole = not self.forward and self.data_path.suffix != ".gz" and is_compressed(self.data_path)
        step = planes if whole else max(1, SLAB_VOXELS // (i * j))
        # A source keeps the reader of a .gz and its index: one of its own is released with the last slab.
        scan = self if self.forward else replace(self, source=copy(self.source))
        for start in range(0, planes, step):
            yield scan.slab(start, min(start + step, planes), time)

    def read(self, time: int = 0, *, finite: bool = True) -> Volume:
        """Read one time point; if `finite`, voxels that are NaN or infinite become its lowest value, which is air."""
        voxels = np.empty(self.grid.shape, np.float32, order="F")
        start = 0
        for slab in self.slabs(time):
            voxels[:, :, start : start + slab.shape[2]] = slab
            start += slab.shape[2]
        if finite and not np.isfinite([voxels.min(), voxels.max()]).all():
            measured = np.isfinite(voxels)
            voxels[~measured] = voxels[measured].min() if measured.any() else 0
        return Volume(voxels, self.grid, self.header)


def space_and_time(path: Path, sizes: tuple[int, ...], *, time_first: bool) -> tuple[FileShape, int]:
    """Split the sizes of an image's axes into those of space and the number of time points.

    Raises:
        InputError: They are not the sizes of a volume.
    """
    given = sizes
    while len(sizes) > 3 and not time_first and sizes[-1] == 1:
        sizes = sizes[:-1]
    if len(sizes) not in (3, 4) or min(sizes) < 1:
        raise ReadError(
            path.name,
            "a volume has three axes of space, each of one voxel or more, and perhaps one of time; received the shape "
            + "x".join(map(str, given)),
            "Correct its header, or crop it.",
        )
    n_timepoints = 1 if len(sizes) == 3 else sizes[0] if time_first else sizes[3]
    if n_timepoints > MAX_TIMEPOINTS:
        raise ReadError(
            path.name,
            f"its header declares {n_timepoints} time points, and up to {MAX_TIMEPOINTS} are read",
            "Correct its header, or split the series.",
        )
    return FileShape(*(sizes[-3:] if time_first else sizes[:3])), n_timepoints


@contextmanager
def reading(path: Path) -> Iterator[list[str]]:
    """Read a file with third-party code: any error becomes an InputError, and warnings are collected, not printed.

    Yields:
        The warnings, complete when the context has ended.
    """
    messages: list[str] = []
    thread = get_ident()
    listener = logging.Handler(logging.WARNING)
    listener.addFilter(lambda record: record.thread == thread)
    listener.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("nibabel.global")
    with WARNINGS.collected(messages):
        logger.addHandler(listener)
        try:
            yield messages
        except InputError:
            raise
        except MemoryError:
            raise ReadError(path.name, "it does not fit into memory", "Cut it, or use a machine with more.") from None
        except Exception as error:
            remedy = "Check that it is a whole volume, copy it again or convert it to NIfTI."
            raise ReadError(path.name, _clause(error, path), remedy) from error
        finally:
            logger.removeHandler(listener)


def _clause(error: Exception, path: Path) -> str:
    """Turn an error of third-party code into one clause, without folders and unprintable characters."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({Path(str(error.filename or path)).name})"
    text = " ".join(str(error).split()).replace(str(path), path.name).replace(f"{path.parent}/", "")
    text = "".join(character if character.isprintable() else "?" for character in text)
    return f"{text[:200].rstrip('.') or 'the reader gave no reason'} ({type(error).__name__})"
