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

CHECKSUM_BYTES = hashlib.sha256().digest_size


def content_key(made_from: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain data, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def program_versions() -> dict[str, str | None]:
    """Return the versions of the packages that determine the last bits of a core."""
    packages = ("voxlift", "numpy", "keras", "tensorflow", "tensorflow-cpu")
    return {**dict.fromkeys(packages), **installed_versions(*packages)}


@dataclass(frozen=True)
class ShardStore:
    """The cores of one volume, a file each: float32 in file order (i fastest), then their SHA-256.

    A file appears when it is complete; one that is damaged all the same does not match its checksum.

    Args:
        folder: Named by the `content_key` of what the cores are made from.
    """

    folder: Path

    def save(self, shard: Shard, voxels: NDArray[np.float32]) -> None:
        """Store a core, `(i, j, k)`."""
        in_file_order = np.ascontiguousarray(voxels.T, dtype=np.float32)
        with replacing(self._path(shard), durable=False) as partial, partial.open("wb") as file:
            file.write(in_file_order.data)
            file.write(hashlib.sha256(in_file_order.data).digest())

    def load(self, shard: Shard, shape: FileShape) -> NDArray[np.float32]:
        """Map a stored core into memory, `(i, j, k)` of `shape`, without reading it."""
        return np.memmap(self._path(shard), np.float32, "r", shape=shape, order="F")

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
        return self.folder / ("_".join(f"{start}-{stop}" for start, stop in shard.core) + ".core")
