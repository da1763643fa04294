"""Reads of files while a test runs: every open, as the kernel reports it, and the bytes read through each."""

import builtins
import ctypes
import io
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from indexed_gzip import IndexedGzipFile
from nibabel.openers import ImageOpener

IN_OPEN = 0x20
IN_PYTHON = ("read", "seek", "tell", "close")
EVENT = struct.Struct("iIII")
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass
class Reads:
    """Reads of one file: bytes, opens that were counted in this process, and opens that the kernel has seen."""

    bytes: int = 0
    counted: int = 0
    seen: int = 0


class FileReads:
    """Counts what is read from files, whoever reads it.

    Bytes are counted in this process, in what `open` returns; a file whose descriptor is given away (to be mapped, or
    copied by the kernel, or to a library) counts as read whole. Readers that this cannot see (another process, C code)
    have to open the file, and the kernel reports every open: `of` fails unless both numbers of opens are the same.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._files: dict[tuple[int, int], Reads] = {}
        self._watches: dict[int, Reads] = {}
        self._outputs = Path("/nonexistent")
        self._events = LIBC.inotify_init1(os.O_NONBLOCK)
        self._open = io.open
        for module in (builtins, io):
            monkeypatch.setattr(module, "open", self._counted_open)
        monkeypatch.setitem(ImageOpener.compress_ext_map, None, (self._counted_open, ("mode", "buffering")))
        # Given a name it opens files in C; given a file object it reads the same bytes, where they are counted.
        monkeypatch.setattr("tasks.volume.nifti.IndexedGzipFile", self._indexed_gzip)

    def watch(self, path: Path) -> None:
        """Count what is read from a file from now on, under whatever name."""
        status = path.stat()
        reads = self._files[status.st_dev, status.st_ino] = Reads()
        # Also its folder: the kernel merges equal events in a row, and so there are none.
        for watched in (path.parent, path):
            number = LIBC.inotify_add_watch(self._events, os.fsencode(watched), IN_OPEN)
            assert number > 0, os.strerror(ctypes.get_errno())
        self._watches[number] = reads

    def watch_outputs(self, folder: Path) -> None:
        """Count what is read from each volume that is written into a folder, from its first byte on."""
        self._outputs = folder

    def of(self, path: Path) -> Reads:
        """Return what was read from a file; fails if anyone has read from it uncounted."""
        while events := self._next_events():
            offset = 0
            while offset < len(events):
                number, _, _, length = EVENT.unpack_from(events, offset)
                assert number > 0, "the kernel has dropped events"
                if number in self._watches:
                    self._watches[number].seen += 1
                offset += EVENT.size + length
        status = path.stat()
        reads = self._files[status.st_dev, status.st_ino]
        assert reads.seen == reads.counted, "someone has opened it whose reads are not counted"
        return reads

    def _next_events(self) -> bytes:
        try:
            return os.read(self._events, 1 << 16)
        except BlockingIOError:
            return b""

    def _counted_open(self, file: Any, mode: str = "r", buffering: int = -1, *more: Any, **named: Any) -> Any:
        if mode == "r+b" and (synchronised := self._reads_of(file)):  # which reads nothing
            synchronised.counted += 1
        reads = self._reads_of(file) if mode == "rb" else None
        if reads is None:
            opened = self._open(file, mode, buffering, *more, **named)
            if mode == "wb" and isinstance(file, Path) and file.parent == self._outputs:
                self.watch(file)
            return opened
        reads.counted += 1
        raw = CountedFile(file, reads)
        return raw if buffering == 0 else io.BufferedReader(raw)

    def _reads_of(self, file: Any) -> Reads | None:
        if isinstance(file, int) or not os.path.exists(file):  # noqa: PTH110 - whatever names a file
            return None
        status = os.stat(file)  # noqa: PTH116
        return self._files.get((status.st_dev, status.st_ino))

    def _indexed_gzip(self, path: str, **options: Any) -> IndexedGzipFile:
        counted = self._counted_open(path, "rb", 0)
        if not isinstance(counted, CountedFile):
            return IndexedGzipFile(path, **options)
        # Without a descriptor, by which it would read in C.
        return IndexedGzipFile(
            fileobj=SimpleNamespace(**{name: getattr(counted, name) for name in IN_PYTHON}), **options
        )


class CountedFile(io.FileIO):
    """A file that counts the bytes that are read from it."""

    def __init__(self, file: Any, reads: Reads) -> None:
        super().__init__(file, "rb")
        self._reads = reads

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self._reads.bytes += count
        return count

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size)
        self._reads.bytes += len(data)
        return data

    def readall(self) -> bytes:
        data = super().readall()
        self._reads.bytes += len(data)
        return data

    def fileno(self) -> int:
        descriptor = super().fileno()
        self._reads.bytes += os.fstat(descriptor).st_size
        return descriptor
