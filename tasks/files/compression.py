"""Compressed files: writing them fast, and decompressing one to its end to know that it is whole.

Compression is ISA-L's at level 2: against Python's gzip at level 1 and zlib-ng it writes several times faster at a size
between theirs (`benchmarks/volumes.py`). Written bytes carry no time and no name: equal voxels give equal files.
"""

import bz2
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from isal import igzip, igzip_threaded, isal_zlib

from configs.errors import InputError

LEVEL = 2
CHUNK = 1 << 20
# A volume of noise shrinks by half, an empty one by a thousand: what decompresses further than this is no scan.
BOMB_BYTES = 256 << 20
BOMB_RATIO = 200

ISAL_ERROR = cast("type[Exception]", isal_zlib.error)  # a class, whatever its stub says
GZIP, BZIP2 = b"\x1f\x8b", b"BZh"


@contextmanager
def open_to_write(path: Path) -> Iterator[Callable[[bytes], object]]:
    """Open a file for writing and yield what writes to it; a name that ends in `.gz` is compressed, on a thread.

    Equal bytes give equal files, in whatever pieces they come: they are compressed in blocks of `CHUNK`.
    """
    if path.suffix != ".gz":
        with path.open("wb") as file:
            yield file.write
        return
    pending = bytearray()
    with igzip_threaded.open(path, "wb", compresslevel=LEVEL, threads=1, block_size=CHUNK) as packed:

        def write(data: bytes) -> None:
            pending.extend(data)
            whole = len(pending) // CHUNK * CHUNK
            for start in range(0, whole, CHUNK):
                packed.write(bytes(pending[start : start + CHUNK]))
            del pending[:whole]

        yield write
        packed.write(bytes(pending))


def is_compressed(path: Path) -> bool:
    """Tell by its first bytes whether a file is gzip or bzip2, whatever it is called."""
    with path.open("rb") as file:
        return file.read(3).startswith((GZIP, BZIP2))


def check_packing(path: Path) -> None:
    """Refuse a file whose name says that it is compressed when it is not, or the contrary.

    Raises:
        InputError: Name and content disagree.
    """
    if path.suffix.lower() == ".zst":
        raise InputError(f"Cannot read {path.name}: Zstandard is not supported.", "Decompress it first with zstd -d.")
    named = path.suffix.lower() in (".gz", ".mgz", ".bz2")
    if named and not is_compressed(path):
        raise InputError(
            f"Cannot read {path.name}: it is called {path.suffix} and is not a compressed file.",
            f"If it is an uncompressed volume, rename it without {path.suffix}; if not, copy it again.",
        )
    if path.suffix.lower() in (".nii", ".hdr", ".img", ".mgh") and is_compressed(path):
        raise InputError(f"Cannot read {path.name}: it is compressed and not called so.", "Add .gz to its name.")


def decompressed_size(path: Path) -> int:
    """Return how many bytes a file holds once decompressed, having read it to its end and checked its checksum.

    Raises:
        InputError: A compressed file is cut short, damaged, or decompresses beyond any scan.
    """
    if not is_compressed(path):
        return path.stat().st_size
    limit = max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size)
    size = 0
    try:
        with _open_to_read(path) as file:
            while chunk := file.read(CHUNK):
                size += len(chunk)
                if size > limit:
                    break
    except EOFError:
        raise InputError(
            f"Cannot read {path.name}: the compressed file is cut short after {size} decompressed bytes.",
            "Copy it again.",
        ) from None
    except (OSError, zlib.error, ISAL_ERROR) as error:
        raise InputError(
            f"Cannot read {path.name}: the compressed file is damaged after {size} decompressed bytes ({error}).",
            "Copy it again.",
        ) from None
    if size > limit:
        raise InputError(
            f"Cannot read {path.name}: {path.stat().st_size} bytes decompress to more than {limit >> 20} MiB, which no "
            "scan does.",
            "If it is one, decompress it first and give the uncompressed file.",
        )
    return size


def _open_to_read(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        packed_by_bzip2 = file.read(3) == BZIP2
    return cast("BinaryIO", bz2.open(path) if packed_by_bzip2 else igzip.open(path))
