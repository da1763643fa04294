"""The shard plan: a division of the target grid in which every shard computes what one pass over the volume would.

A shard reads an interval that is aligned to the network's total stride, so its layers meet the voxels at the same
phases, and keeps of it only what no edge of the read affects. At the edge of the volume the read ends where the
(padded) volume ends, so zero padding falls in the same place. All reads of a plan have one shape, so the network is
traced once.

Along one axis of `n` voxels, `count` reads of `length` that overlap by `overlap = trim before + trim after`, rounded up
to the total stride, cover `count*length - (count - 1)*overlap >= n`.
"""

from dataclasses import dataclass
from itertools import product
from math import ceil, prod

from configs.axes import NetworkShape, triple
from configs.errors import InputError
from models.network.cost import Cost
from models.network.receptive_field import AxisField

Interval = tuple[int, int]
Box = tuple[Interval, Interval, Interval]

MIB = 2**20
# Measured by benchmarks.sharding: memory of a worker beyond an idle one, by the live tensors of its network.
LIVE_FACTOR = 1.55
VOXEL_BYTES = 22  # resampled, normalised, clipped, restored and returned
FIXED_BYTES = 32 * MIB
THREAD_SPEED = 60e9  # multiply-adds a second of one CPU thread; 80 to 90 billion on an idle EPYC with AVX-512


class BudgetError(InputError):
    """A memory budget that holds no shard; `least_mib` is the least that would do."""

    def __init__(self, problem: str, remedy: str = "", least_mib: int = 0) -> None:
        super().__init__(problem, remedy)
        self.least_mib = least_mib


@dataclass(frozen=True)
class Shard:
    """The piece of the target grid that one worker computes.

    Args:
        core: The voxels it owns, `(start, stop)` along depth, height and width of the target grid.
        read: The voxels it reads, core and halo; may reach beyond the target grid into its padding.
    """

    core: Box
    read: Box

    @property
    def shape(self) -> NetworkShape:
        """Voxels of the core along each axis."""
        return NetworkShape(*(stop - start for start, stop in self.core))

    @property
    def crop(self) -> tuple[slice, slice, slice]:
        """The core within the read."""
        return triple(slice(c[0] - r[0], c[1] - r[0]) for c, r in zip(self.core, self.read, strict=True))


@dataclass(frozen=True)
class ShardPlan:
    """A target grid in shards; a function of its shape, the network and the memory budget, never of the workers.

    Args:
        target_shape: Voxels of the target grid along depth, height and width.
        shards: Its shards; their cores tile the grid exactly once.
        halo: The network's worst-case halo before and after a core, of each axis.
        read_shape: Voxels that each shard reads.
        shard_bytes: Estimated memory of a worker for one shard, beyond an idle worker.
        shard_multiply_adds: Arithmetic of one shard.
        smallest_bytes: The least budget with which this grid can be sharded.
    """

    target_shape: NetworkShape
    shards: tuple[Shard, ...]
    halo: tuple[tuple[int, int], ...]
    read_shape: NetworkShape
    shard_bytes: int
    shard_multiply_adds: int
    smallest_bytes: int

    @property
    def overhead(self) -> float:
        """Voxels computed over voxels kept."""
        return len(self.shards) * prod(self.read_shape) / prod(self.target_shape)

    @property
    def shard_seconds(self) -> float:
        """Estimated time of one CPU thread for one shard."""
        return self.shard_multiply_adds / THREAD_SPEED

    @property
    def core_shape(self) -> NetworkShape:
        """Voxels of the largest core along each axis."""
        return NetworkShape(*(max(sizes) for sizes in zip(*(shard.shape for shard in self.shards), strict=True)))

    def __str__(self) -> str:
        shards = "1 shard" if len(self.shards) == 1 else f"{len(self.shards)} shards"
        return (
            f"{shards} of {'x'.join(map(str, self.read_shape))} voxels, {self.overhead:.2f} voxels computed per voxel"
            f" kept, about {ceil(self.shard_bytes / MIB)} MiB and {self.shard_seconds:.1f} s of a CPU thread each"
            f" (least possible budget: {ceil(self.smallest_bytes / MIB)} MiB)"
        )


def plan_shards(
    target_shape: NetworkShape, cost: Cost, budget_mib: int, *, resident_bytes: int = 0, name: str = "the volume"
) -> ShardPlan:
    """Divide a target grid into the shards that compute the fewest voxels within a memory budget.

    Args:
        target_shape: Voxels of the target grid along depth, height and width.
        cost: The network's memory and receptive field.
        budget_mib: Memory that a worker may use beyond an idle one, MiB.
        resident_bytes: Memory that the input volume takes in a worker, for every shard.
        name: Name of the volume, for the error.

    Raises:
        BudgetError: The budget holds no shard.
    """
    axes = tuple(zip(target_shape, cost.field.axes, strict=True))
    choices = [_choices(size, axis) for size, axis in axes]
    least = NetworkShape(*(lengths[-1][1] for lengths in choices))
    smallest_bytes = shard_bytes(cost, least) + resident_bytes

    def computed(option: tuple[tuple[int, int], ...]) -> tuple[int, object]:
        return prod(count * length for count, length in option), option

    for option in sorted(product(*choices), key=computed):
        read_shape = NetworkShape(*(length for _, length in option))
        needed = shard_bytes(cost, read_shape) + resident_bytes
        if needed <= budget_mib * MIB:
            break
    else:
        core = "x".join(str(_pieces(*axis, length)[0][0][1]) for axis, length in zip(axes, least, strict=True))
        mib = ceil(smallest_bytes / MIB)
        raise BudgetError(
            f"Cannot shard {name}: the memory budget of {budget_mib} MiB holds no shard of this network (smallest:"
            f" {mib} MiB for a core of {core}).",
            f"Raise resources.memory_budget_mib to {mib} or more.",
            mib,
        )
    pieces = product(*(_pieces(*axis, length) for axis, length in zip(axes, read_shape, strict=True)))
    return ShardPlan(
        target_shape=target_shape,
        shards=tuple(Shard((i[0], j[0], k[0]), (i[1], j[1], k[1])) for i, j, k in pieces),
        halo=cost.field.halo,
        read_shape=read_shape,
        shard_bytes=needed,
        shard_multiply_adds=cost.multiply_adds(read_shape),
        smallest_bytes=smallest_bytes,
    )


def shard_bytes(cost: Cost, read_shape: NetworkShape) -> int:
    """Estimated memory of a worker for one shard, beyond an idle worker."""
    return int(LIVE_FACTOR * cost.peak_bytes(read_shape)) + VOXEL_BYTES * prod(read_shape) + FIXED_BYTES


def _choices(size: int, axis: AxisField) -> list[tuple[int, int]]:
    """List the ways to cover an axis: (reads, voxels of each), for each number of reads the shortest, aligned."""
    padded, overlap = _aligned(size, axis.stride), _overlap(axis)
    shortest: dict[int, int] = {1: padded}
    for length in range(overlap + axis.stride, padded, axis.stride):
        shortest.setdefault(-(-(padded - overlap) // (length - overlap)), length)
    return sorted(shortest.items())


def _pieces(size: int, axis: AxisField, length: int) -> list[tuple[Interval, Interval]]:
    """List the cores and reads along one axis, for reads of `length`."""
    padded = _aligned(size, axis.stride)
    advance = max(1, length - _overlap(axis))
    starts = [*range(0, padded - length, advance), padded - length]
    cuts = [0, *(start + length - axis.trim[1] for start in starts[:-1]), size]
    return [((cuts[i], cuts[i + 1]), (start, start + length)) for i, start in enumerate(starts)]


def _overlap(axis: AxisField) -> int:
    return _aligned(sum(axis.trim), axis.stride)


def _aligned(size: int, stride: int) -> int:
    return -(-size // stride) * stride
