"""Files that are compressed or not, written and read in one pass that also gives their digest.

Compression is ISA-L's at level 2: against Python's gzip at level 1 and zlib-ng it writes much faster at a size
between theirs (`benchmarks/volumes.py`). Written bytes carry no time and no name: equal voxels give equal files.
"""

import bz2
import hashlib
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from isal import igzip_threaded, isal_zlib

from configs.errors import ReadError

LEVEL = 2
CHUNK = 1 << 20
MAX_PART = 1 << 24  # decompressed at once
# Noise compresses to half its size, an empty volume to a thousandth: a file that decompresses to more is no scan.
BOMB_BYTES = 256 << 20
BOMB_RATIO = 200

ISAL_ERROR = cast("type[Exception]", isal_zlib.error)  # a class, whatever its stub says
GZIP, BZIP2 = b"\x1f\x8b", b"BZh"


class HashedFile(io.RawIOBase):
    """Hashes the bytes that pass to or from a file."""

    def __init__(self, file: BinaryIO | io.FileIO) -> None:
        self.sha256 = hashlib.sha256()
        self._file = file

    def readable(self) -> bool:
        """Return True, which `BufferedReader` requires."""
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - anything with the buffer protocol
        """Read the next bytes into a buffer."""
        count = cast("io.FileIO", self._file).readinto(buffer)
        self.sha256.update(memoryview(buffer)[:count])
        return count

    def write(self, data: Any) -> int:  # noqa: ANN401 - anything with the buffer protocol
        """Write bytes."""
        self.sha256.update(data)
        return self._file.write(data)


@contextmanager
def open_to_write(path: Path) -> Iterator[tuple[Callable[[bytes], object], HashedFile]]:
    """Open a file for writing; a name that ends in `.gz` is compressed, on a thread.

    Equal bytes give equal files, however they are split into writes: they are compressed in blocks of `CHUNK`.

    Yields:
        A function that writes to it, and the file, whose digest is complete when the context has ended.
    """
    with path.open("wb") as file:
        hashed = HashedFile(file)
        if path.suffix != ".gz":
            yield hashed.write, hashed
            return
        pending = bytearray()
        with igzip_threaded.open(hashed, "wb", compresslevel=LEVEL, threads=1, block_size=CHUNK) as packed:

            def write(data: bytes) -> None:
                pending.extend(data)
                whole = len(pending) // CHUNK * CHUNK
                for start in range(0, whole, CHUNK):
                    packed.write(bytes(pending[start : start + CHUNK]))
                del pending[:whole]

            yield write, hashed
            packed.write(bytes(pending))


def is_compressed(path: Path) -> bool:
    """Check the first bytes of a file for gzip or bzip2; its name does not matter. A folder is not compressed."""
    if path.is_dir():
        return False
    with path.open("rb") as file:
        return file.read(3).startswith((GZIP, BZIP2))


def check_packing(path: Path) -> None:
    """Refuse a file that is compressed although its name says otherwise, or not compressed although its name says so.

    Raises:
        ReadError: Name and content disagree.
    """
    if path.suffix.lower() == ".zst":
        raise ReadError(path.name, "Zstandard is not supported", "Decompress it first with zstd -d.")
    named = path.suffix.lower() in (".gz", ".mgz", ".bz2")
    if named and not is_compressed(path):
        raise ReadError(
            path.name,
            f"it is called {path.suffix} and is not a compressed file",
            f"If it is an uncompressed volume, rename it without {path.suffix}; if not, copy it again.",
        )
    if path.suffix.lower() in (".nii", ".hdr", ".img", ".mgh") and is_compressed(path):
        raise ReadError(path.name, "it is compressed and not called so", "Add .gz to its name.")


class GzipReader:
    """Reads the members of a gzip file one after another, and counts what follows the last of them.

    Args:
        file: At the start of the first member.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.trailing = 0  # bytes after the last member, without padding of zeros
        self._file, self._pending = file, b""
        self._member: Any = None

    def read(self, size: int = -1) -> bytes:
        """Read decompressed bytes, all for a negative size; fewer than `size` only at the end.

        Raises:
            EOFError: The file ends within a member.
        """
        parts, left = [], size if size >= 0 else sys.maxsize
        while left and (self._member is not None or self._starts_member()):
            data = self._pending or self._file.read(CHUNK)
            part = self._member.decompress(data, min(left, MAX_PART))
            self._pending = self._member.unconsumed_tail
            if self._member.eof:
                self._pending, self._member = self._member.unused_data, None
            elif not data and not part:
                raise EOFError
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _starts_member(self) -> bool:
        """Begin the next member; False, at the end of the file, if there is none."""
        data = self._pending if len(self._pending) >= len(GZIP) else self._pending + self._file.read(CHUNK)
        if data.startswith(GZIP):
            self._member, self._pending = isal_zlib.decompressobj(wbits=31), data
            return True
        while data:
            self.trailing += len(data.strip(b"\0"))
            data = self._file.read(CHUNK)
        self._pending = b""
        return False


class ForwardReader(io.BufferedIOBase):
    """Reads a file once, from its first byte to its last, decompressed where it is compressed, and hashes it.

    It seeks forward only, by reading. A compressed file that is truncated, damaged, or decompresses beyond any scan is
    a ReadError. `ImageOpener` of nibabel takes it for an open file.

    Args:
        path: The file.

    Raises:
        ReadError: It is empty.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._position = path, 0
        self.stored_size = path.stat().st_size
        if self.stored_size == 0:
            raise ReadError(path.name, "the file is empty", "Copy it again.")
        self.limit = max(BOMB_BYTES, BOMB_RATIO * self.stored_size)
        self._opened = path.open("rb", buffering=0)
        self._hashed = HashedFile(self._opened)
        start = self._opened.read(3)
        self._opened.seek(0)
        self.compressed = start.startswith((GZIP, BZIP2))
        buffered = io.BufferedReader(self._hashed, CHUNK)
        self._file: BinaryIO | bz2.BZ2File | GzipReader = buffered
        if start == BZIP2:
            self._file = bz2.BZ2File(buffered)
        elif self.compressed:
            self._file = GzipReader(buffered)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Read forward to an offset; OSError if it lies behind."""
        if whence != io.SEEK_SET or offset < self._position:
            raise io.UnsupportedOperation("a ForwardReader does not go back")
        while self._position < offset and self.read(min(CHUNK, offset - self._position)):
            pass
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Read decompressed bytes; fewer than `size` only at the end of the file.

        Raises:
            ReadError: A compressed file is truncated, damaged, or decompresses beyond any scan.
        """
        try:
            data = self._file.read(-1 if size is None else size)
        except EOFError:
            reason = f"the compressed file is truncated after {self._position} decompressed bytes"
            raise ReadError(self._path.name, reason, "Copy it again.") from None
        except (OSError, zlib.error, ISAL_ERROR) as error:
            kind = "compressed file" if self.compressed else "file"
            reason = f"the {kind} is damaged after {self._position} decompressed bytes ({error})"
            raise ReadError(self._path.name, reason, "Copy it again.") from None
        self._position += len(data)
        if self.compressed and self._position > self.limit:
            raise ReadError(
                self._path.name,
                f"{self.stored_size} bytes decompress to more than {self.limit >> 20} MiB, which no scan does",
                "If it is one, decompress it first and give the uncompressed file.",
            )
        return data

    @property
    def trailing(self) -> int:
        """Bytes after a gzip stream that are none of it, once the file was read to its end."""
        return self._file.trailing if isinstance(self._file, GzipReader) else 0

    def finish(self) -> tuple[int, str]:
        """Read on to the end; returns how many bytes the file holds decompressed, and the SHA-256 of its own bytes."""
        while self.read(CHUNK):
            pass
        return self._position, self._hashed.sha256.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._opened.close()
        super().close()
