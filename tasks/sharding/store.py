"""Restored cores on disk, by what they were made from, for an interrupted run to resume."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.axes import FileShape
from tasks.files.atomic import replacing
from tasks.machine.versions import installed_versions
from tasks.sharding.plan import Shard
from tasks.volume.encoding import Encoding

CHECKSUM_BYTES = hashlib.sha256().digest_size
COUNT = np.dtype("<i8")


def content_key(made_from: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain data, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def program_versions() -> dict[str, str | None]:
    """Return the versions of the packages that determine the last bits of a core."""
    packages = ("voxlift", "numpy", "keras", "tensorflow", "tensorflow-cpu")
    return {**dict.fromkeys(packages), **installed_versions(*packages)}


@dataclass(frozen=True)
class ShardStore:
    """The cores of one volume, a file each: voxels in file order (i fastest), a count, and the SHA-256 of both.

    A file appears when it is complete; one that is damaged all the same does not match its checksum.

    Args:
        folder: Named by the `content_key` of what the cores are made from.
        encoding: Of the voxels, that of the output; None for float32 in the unit of the file. Cores of several dtypes
            may be next to one another.
    """

    folder: Path
    encoding: Encoding | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored voxels."""
        return np.dtype(np.float32 if self.encoding is None else self.encoding.dtype)

    def save(self, shard: Shard, voxels: NDArray[Any], outside: int = 0) -> None:
        """Store a core, `(i, j, k)`, and how many of its voxels were outside the range of the input."""
        if voxels.dtype != self.dtype:
            raise ValueError(f"a core of {voxels.dtype} is not stored as {self.dtype}")
        content = np.ascontiguousarray(voxels.T).data, np.array(outside, COUNT).tobytes()
        digest = hashlib.sha256()
        with replacing(self._path(shard), durable=False) as partial, partial.open("wb") as file:
            for part in content:
                file.write(part)
                digest.update(part)
            file.write(digest.digest())

    def load(self, shard: Shard, shape: FileShape) -> NDArray[Any]:
        """Map a stored core into memory, `(i, j, k)` of `shape`, without reading it."""
        return np.memmap(self._path(shard), self.dtype, "r", shape=shape, order="F")

    def outside(self, shard: Shard) -> int:
        """Return how many voxels of a stored core were outside the range of the input."""
        stored = np.memmap(self._path(shard), np.uint8, "r")
        return int(stored[-CHECKSUM_BYTES - COUNT.itemsize : -CHECKSUM_BYTES].view(COUNT)[0])

    def holds(self, shard: Shard) -> bool:
        """True if the core is stored and undamaged."""
        path = self._path(shard)
        if not path.is_file() or path.stat().st_size < CHECKSUM_BYTES:
            return False
        stored = np.memmap(path, np.uint8, "r")
        return hashlib.sha256(stored[:-CHECKSUM_BYTES].data).digest() == stored[-CHECKSUM_BYTES:].tobytes()

    def clear(self) -> None:
        """Delete all cores."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, shard: Shard) -> Path:
        name = "_".join(f"{start}-{stop}" for start, stop in shard.core)
        return self.folder / (f"{name}.core" if self.encoding is None else f"{name}.{self.encoding.dtype}.core")
