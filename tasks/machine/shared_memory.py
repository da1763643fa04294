"""Arrays in memory that several processes of a machine map, each keeping only the pages there that it is reading.

A mapped page counts as resident memory of every process that has touched it. Given back (`madvise`, MADV_DONTNEED), it
stays where it is for all of them, and the next read maps it again.
"""

import ctypes
import mmap
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Generic, TypeVar, cast
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 16 << 20  # of an array that are mapped at a time
PAGE = mmap.PAGESIZE
MAPS = Path("/proc/self/maps")

Value = TypeVar("Value")


def shared_file(size: int) -> IO[bytes]:
    """Make a file of memory, without a name, that other processes can map; it is gone with the last of them."""
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("voxlift"), "w+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by its owner
    file.truncate(size)
    return file


class Shared(Generic[Value]):
    """A value whose arrays lie in memory that other processes map: what these unpickle is the value itself.

    Where a process cannot open a file of another one, as outside Linux, they get a copy.

    Args:
        value: Is pickled; its contiguous arrays become read-only.
    """

    def __init__(self, value: Value) -> None:
        buffers: list[pickle.PickleBuffer] = []
        self._content = pickle.dumps(value, 5, buffer_callback=buffers.append)
        parts = [buffer.raw() for buffer in buffers]
        self._extents, size = [], 0
        for part in parts:
            self._extents.append((size, part.nbytes))
            size += -(-part.nbytes // PAGE) * PAGE
        with shared_file(max(1, size)) as file:
            for (start, _), part in zip(self._extents, parts, strict=True):
                file.seek(start)
                file.write(part)
            file.flush()
            self._handle = os.dup(file.fileno())
        finalize(self, os.close, self._handle)

    @cached_property
    def value(self) -> Value:
        """The value, mapped in this process too."""
        return cast("Value", _opened(self._content, self._handle, self._extents))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        path = Path(f"/proc/{os.getpid()}/fd/{self._handle}")
        if path.exists():
            return _opened, (self._content, path, self._extents)
        return pickle.loads, (pickle.dumps(self.value, 5),)


def _opened(content: bytes, file: Path | int, extents: list[tuple[int, int]]) -> object:
    """Unpickle a value with its arrays in a file that is mapped."""
    handle = os.open(file, os.O_RDONLY) if isinstance(file, Path) else os.dup(file)
    try:
        memory = memoryview(mmap.mmap(handle, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(handle)
    parts = [memory[start : start + size] for start, size in extents]
    return pickle.loads(content, buffers=parts)  # noqa: S301 - written by the process that shares it


class Windowed:
    """An array that gives copies of its windows and keeps no more than a block of it mapped meanwhile.

    Args:
        array: In memory that other processes share, or of this process alone.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self._array, self.shape = array, array.shape

    def __getitem__(self, window: tuple[slice, ...]) -> NDArray[Any]:
        """Copy a window."""
        part = self._array[window]
        copy = np.empty(part.shape, part.dtype)
        for start, block in blocks(part):
            copy[start : start + len(block)] = block
        return copy


def blocks(array: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield an array in blocks along its first axis, each with its start; the pages of one are given back after it."""
    step = max(1, BLOCK_BYTES // max(1, abs(array.strides[0])))
    is_shared = array.size > 0 and _is_shared(*np.lib.array_utils.byte_bounds(array))
    for start in range(0, len(array), step):
        block = array[start : start + step]
        yield start, block
        if is_shared:  # private memory would be lost
            _give_back(*np.lib.array_utils.byte_bounds(block))


def _give_back(low: int, high: int) -> None:
    """Unmap the whole pages between two addresses, in this process alone."""
    start, stop = -(-low // PAGE) * PAGE, high // PAGE * PAGE
    if start < stop:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)


def _is_shared(start: int, stop: int) -> bool:
    """Return whether addresses belong to one mapping that is shared with other processes."""
    if not MAPS.exists():
        return False
    for line in MAPS.read_text().splitlines():
        addresses, permissions, *_ = line.split(maxsplit=2)
        first, last = (int(number, 16) for number in addresses.split("-"))
        if first <= start < last:
            return stop <= last and permissions[3] == "s"
    return False
