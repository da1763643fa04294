"""Restored cores on disk, by what they were made from, for an interrupted run to resume."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.axes import FileShape
from tasks.files.atomic import replacing
from tasks.machine.versions import installed_versions
from tasks.sharding.comparison import Comparison
from tasks.sharding.plan import Shard
from tasks.volume.encoding import Encoding

CHECKSUM_BYTES = hashlib.sha256().digest_size
COUNT = np.dtype("<i8")
SHOWN_DIGITS = 12  # of the key of a comparison, in the names of its files


def content_key(made_from: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain data, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def program_versions() -> dict[str, str | None]:
    """Return the versions of the packages that determine the last bits of a core."""
    packages = ("voxlift", "numpy", "keras", "tensorflow", "tensorflow-cpu")
    return {**dict.fromkeys(packages), **installed_versions(*packages)}


@dataclass(frozen=True)
class ShardStore:
    """The cores of one volume, a file each.

    It holds the voxels in file order (i fastest), the part of the comparison if there is one, a count, and the SHA-256
    of all that. It appears when it is complete; one that is damaged all the same does not match its checksum.

    Args:
        folder: Named by the `content_key` of what the cores are made from.
        encoding: Of the voxels, that of the output; None for float32 in the unit of the file. Cores of several dtypes
            and comparisons may be next to one another.
        comparison: Of the volume with its input, of which each core has its part; None for none.
    """

    folder: Path
    encoding: Encoding | None = None
    comparison: Comparison | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored voxels."""
        return np.dtype(np.float32 if self.encoding is None else self.encoding.dtype)

    def save(
        self, shard: Shard, voxels: NDArray[Any], outside: int = 0, part: NDArray[np.float32] | None = None
    ) -> None:
        """Store a core.

        Args:
            shard: Of the core.
            voxels: `(i, j, k)`.
            outside: How many of them were outside the range of the input.
            part: Of the comparison, as `Comparison.part` has made it.
        """
        if voxels.dtype != self.dtype:
            raise ValueError(f"a core of {voxels.dtype} is not stored as {self.dtype}")
        if (part is None) != (self.comparison is None):
            raise ValueError("a core has a part where its store has a comparison, and only there")
        parts = () if part is None else (np.ascontiguousarray(part, np.float32).data,)
        content = np.ascontiguousarray(voxels.T).data, *parts, np.array(outside, COUNT).tobytes()
        digest = hashlib.sha256()
        with replacing(self._path(shard), durable=False) as partial, partial.open("wb") as file:
            for one in content:
                file.write(one)
                digest.update(one)
            file.write(digest.digest())

    def load(self, shard: Shard, shape: FileShape) -> NDArray[Any]:
        """Map a stored core into memory, `(i, j, k)` of `shape`, without reading it."""
        return np.memmap(self._path(shard), self.dtype, "r", shape=shape, order="F")

    def part(self, shard: Shard, shape: tuple[int, int, int]) -> NDArray[np.float32]:
        """Read the part of the comparison, of `shape`, that a stored core has."""
        before = self.dtype.itemsize * prod(shard.shape)
        return np.fromfile(self._path(shard), np.float32, prod(shape), offset=before).reshape(shape)

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
        kinds = [] if self.encoding is None else [self.encoding.dtype]
        if self.comparison is not None:
            recipe, encoding = self.comparison.recipe.model_dump(), self.comparison.encoding
            compared = {"recipe": recipe, "encoding": None if encoding is None else asdict(encoding)}
            kinds.append(content_key(compared)[:SHOWN_DIGITS])
        return self.folder / ".".join([name, *kinds, "core"])
