"""Assembly of a restored volume: slabs for the writer from cores on disk, and its residual against the input."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.axes import FileShape, triple
from tasks.imaging.consistency import Correction, noise_level, solve_correction
from tasks.sharding.comparison import Comparison, footprint
from tasks.sharding.plan import Box, Shard, ShardPlan
from tasks.sharding.store import ShardStore
from tasks.volume.grid import NetworkAxes
from tasks.volume.intensity import Intensity
from tasks.volume.scan import SLAB_VOXELS


@dataclass(frozen=True)
class Consistency:
    """Comparison of a restored volume, degraded again, with its input; root mean squares in normalised intensity.

    Args:
        after: Of the difference that a correction leaves.
        before: Of the difference without a correction.
        noise: Of the input, as the correction took it.
    """

    after: float
    before: float
    noise: float


@dataclass(frozen=True)
class Assembly:
    """The cores of a volume and their places in its file.

    Args:
        plan: The shards of the target grid, network axes.
        axes: Between file axes and network axes.
        store: Holds the cores.
    """

    plan: ShardPlan
    axes: NetworkAxes
    store: ShardStore

    @property
    def shape(self) -> FileShape:
        """Voxels of the target grid along (i, j, k)."""
        return self.axes.file_shape(self.plan.target_shape)

    def box(self, shard: Shard) -> Box:
        """Return the place of a core in the file: `(start, stop)` along (i, j, k)."""
        sides = zip(shard.core, self.plan.target_shape, self.axes.flipped, strict=True)
        box = triple((n - stop, n - start) if flipped else (start, stop) for (start, stop), n, flipped in sides)
        return self.axes.of_network(box)

    def in_file_order(self) -> list[Shard]:
        """Sort the shards by their planes in the file."""
        return sorted(self.plan.shards, key=lambda shard: (self.box(shard)[2], self.box(shard)))

    def in_turn(self) -> list[Shard]:
        """Sort the shards as they are computed: slabs along their strips, boxes as in the file."""
        return self.in_file_order() if self.plan.streamed is None else list(self.plan.shards)

    def save(self, shard: Shard, core: NDArray[Any], outside: int = 0, part: NDArray[np.float32] | None = None) -> None:
        """Store a core, `(depth, height, width)`; other arguments as of `ShardStore.save`."""
        self.store.save(shard, self.axes.to_file(core), outside, part)

    def load(self, shard: Shard) -> NDArray[Any]:
        """Map a stored core into memory, `(i, j, k)`."""
        return self.store.load(shard, FileShape(*(stop - start for start, stop in self.box(shard))))

    def outside(self) -> int:
        """Return how many voxels of all cores were outside the range of the input, as they were stored with them."""
        return sum(self.store.outside(shard) for shard in self.plan.shards)

    def slabs(self, arrived: Callable[[Shard], None], slab_voxels: int = SLAB_VOXELS) -> Iterator[NDArray[Any]]:
        """Yield the volume from its first plane to its last, as it is stored, `[i, j, planes]` in Fortran order.

        Args:
            arrived: Returns when a core is in the store.
            slab_voxels: Approximate voxels of a slab.
        """
        i, j, planes = self.shape
        step = max(1, slab_voxels // (i * j))
        boxes = {shard: self.box(shard) for shard in self.in_file_order()}
        for start in range(0, planes, step):
            stop = min(start + step, planes)
            slab = np.empty((i, j, stop - start), self.store.dtype, order="F")
            for shard, ((i0, i1), (j0, j1), (k0, k1)) in boxes.items():
                low, high = max(start, k0), min(stop, k1)
                if low < high:
                    arrived(shard)
                    core = self.load(shard)
                    slab[i0:i1, j0:j1, low - start : high - start] = core[:, :, low - k0 : high - k0]
            yield slab

    def residual(self, coarse: NDArray[Any], comparison: Comparison) -> NDArray[np.float32]:
        """Subtract the restored volume, degraded again, from the input.

        Args:
            coarse: The input, `(depth, height, width)`.
            comparison: That of the stored parts.

        Returns:
            float32 of the input's shape, in the unit of the input.
        """
        again = np.zeros(coarse.shape, np.float32)
        for shard in self.plan.shards:
            found = footprint(shard.core, self.plan.target_shape, comparison.recipe)
            again[found.window] += found.spread(self.store.part(shard, found.shape))
        return coarse - again

    def correction(
        self, coarse: NDArray[np.float32], intensity: Intensity, comparison: Comparison
    ) -> tuple[Correction | None, Consistency]:
        """Find what makes the volume consistent with its input, once all cores are in the store.

        Args:
            coarse: The input, `(depth, height, width)`, in the unit of the file.
            intensity: Of the input.
            comparison: That of the stored parts.

        Returns:
            The correction, in the unit of the file, None where there is none or the volume is only compared; and the
            consistency of the volume.
        """
        unit, shape, recipe = np.float32(intensity.high - intensity.low), self.plan.target_shape, comparison.recipe
        residual = self.residual(coarse, comparison) / unit
        before = float(np.sqrt(np.mean(np.square(residual, dtype=np.float64))))
        if comparison.encoding is not None:
            return None, Consistency(before, before, 0.0)
        noise = noise_level(coarse / unit, shape, recipe)
        found = solve_correction(residual, shape, recipe, noise=noise)
        if found is None:
            return None, Consistency(before, before, noise)
        return replace(found, coefficients=found.coefficients * unit), Consistency(found.unexplained, before, noise)

    def correction_planes(self, correction: Correction, start: int, stop: int) -> NDArray[np.float32]:
        """Return what to add to the planes `start..stop` along k, `[i, j, planes]`."""
        rows = (slice(*side) for side in self.axes.planes(self.shape, start, stop))
        return self.axes.to_file(correction.window(*rows))
