"""Restored cores on disk, by what they were made from: a run that was interrupted finds what it had."""

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
    """Name what was made from these, whoever made it: a SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def program_versions() -> dict[str, str | None]:
    """The versions of the programs that decide on the last bits of a core."""
    packages = ("voxlift", "numpy", "keras", "tensorflow", "tensorflow-cpu")
    return {**dict.fromkeys(packages), **installed_versions(*packages)}


@dataclass(frozen=True)
class ShardStore:
    """The cores of one volume, a file each: float32 in file order (i fastest), then their SHA-256.

    A file appears when it is whole; one that was torn nevertheless does not match its checksum.

    Args:
        folder: Named by the `content_key` of what the cores are made from.
    """

    folder: Path

    def save(self, shard: Shard, voxels: NDArray[np.float32]) -> None:
        """Keep a core, `(i, j, k)`."""
        in_file_order = np.ascontiguousarray(voxels.T, dtype=np.float32)
        with replacing(self._path(shard)) as partial, partial.open("wb") as file:
            file.write(in_file_order.data)
            file.write(hashlib.sha256(in_file_order.data).digest())

    def load(self, shard: Shard, shape: FileShape) -> NDArray[np.float32]:
        """Map a core that is there, `(i, j, k)` of `shape`, without reading it."""
        return np.memmap(self._path(shard), np.float32, "r", shape=shape, order="F")

    def holds(self, shard: Shard) -> bool:
        """True if the core is there and whole."""
        path = self._path(shard)
        if not path.is_file():
            return False
        digest = hashlib.sha256()
        with path.open("rb") as file:
            left = path.stat().st_size - CHECKSUM_BYTES
            while left > 0:
                chunk = file.read(min(left, 1 << 24))
                digest.update(chunk)
                left -= len(chunk)
            return file.read() == digest.digest()

    def clear(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, shard: Shard) -> Path:
        return self.folder / ("_".join(f"{start}-{stop}" for start, stop in shard.core) + ".core")
