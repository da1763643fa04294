"""The shard plan: a division of the target grid in which every shard computes what one pass over the volume would.

A shard reads an interval that is aligned to the network's total stride, so its layers meet the voxels at the same
phases, and keeps of it only what no edge of the read affects. At the edge of the volume the read ends where the
(padded) volume ends, so zero padding falls in the same place. All reads of a plan have one shape, so the network is
traced once.

Along one axis of `n` voxels, `count` reads of `length` that overlap by `overlap = trim before + trim after`, rounded up
to the total stride, cover `count*length - (count - 1)*overlap >= n`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from math import ceil, prod

from configs.axes import AXES, NetworkShape, triple
from configs.errors import InputError
from models.network.cost import Cost
from models.network.receptive_field import AxisField
from models.network.streaming import Stream
from tasks.machine.shared_memory import BLOCK_BYTES

Interval = tuple[int, int]
Box = tuple[Interval, Interval, Interval]

MIB = 2**20
# Measured by benchmarks.sharding: memory of a worker beyond an idle one, by the live tensors of its network.
LIVE_FACTOR = 1.55
VOXEL_BYTES = 22  # resampled, normalised, clipped, restored and returned
FIXED_BYTES = 32 * MIB
# The same of a worker that streams: by the tensors of a step beyond what it was given, and for graphs of its steps.
STEP_FACTOR = 2.2
STREAM_BYTES = 48 * MIB
MIN_SLABS = 6  # of a strip, for workers to share and a run to resume at
MAX_HEIGHT = 128  # of a slab, planes
# Time of a step of a stream beyond its arithmetic, for planes kept and joined and many small operations, in voxels of
# it: 17 to 110 thousand on two cores, for slabs of 8 to 32 planes of 37 to 102 thousand voxels; no more for the larger.
STEP_VOXELS = 50_000
# Time in which a worker traces the graph of a step, in voxels of its arithmetic: 0.1 to 0.5 s on two cores that take
# 0.19 us for a voxel.
GRAPH_VOXELS = 1_300_000
# Of the arithmetic of one pass, what it is worth to write an output while it is computed: of 300x370x316 by 2x on two
# cores, the writing that followed 35 s of network took 6 s, of which two workers save half.
WRITING_SHARE = 0.06
THREAD_SPEED = 60e9  # multiply-adds a second of one CPU thread; 80 to 90 billion on an idle EPYC with AVX-512


class BudgetError(InputError):
    """A memory budget that holds no shard; `least_mib` is the least that would do."""

    def __init__(self, problem: str, remedy: str = "", least_mib: int = 0) -> None:
        super().__init__(problem, remedy)
        self.least_mib = least_mib


@dataclass(frozen=True)
class Streamed:
    """The way in which a strip of a volume is walked through, slab by slab.

    Args:
        axis: Along which: 0 depth, 1 height, 2 width.
        height: Planes of a slab along it.
    """

    axis: int
    height: int


@dataclass(frozen=True)
class Shard:
    """The piece of the target grid that one worker computes at a time: a slab of a strip, or a box.

    Args:
        core: The voxels it owns, `(start, stop)` along depth, height and width of the target grid.
        read: The voxels it reads, core and halo; may reach beyond the target grid into its padding. Of a slab, the
            strip that it is part of.
        streamed: Of a slab; None for a box, which is computed on its own.
    """

    core: Box
    read: Box
    streamed: Streamed | None = None

    @property
    def shape(self) -> NetworkShape:
        """Voxels of the core along each axis."""
        return NetworkShape(*(stop - start for start, stop in self.core))

    @property
    def crop(self) -> tuple[slice, slice, slice]:
        """The core within the read."""
        return triple(slice(c[0] - r[0], c[1] - r[0]) for c, r in zip(self.core, self.read, strict=True))

    def follows(self, other: "Shard") -> bool:
        """True if it is the next slab of the strip that another one is of."""
        if self.streamed is None or (self.streamed, self.read) != (other.streamed, other.read):
            return False
        return self.core[self.streamed.axis][0] == other.core[self.streamed.axis][1]


def runs(shards: Iterable[Shard]) -> list[list[Shard]]:
    """Group shards that follow one another, which one worker computes with less work."""
    found: list[list[Shard]] = []
    for shard in shards:
        if found and shard.follows(found[-1][-1]):
            found[-1].append(shard)
        else:
            found.append([shard])
    return found


@dataclass(frozen=True)
class ShardPlan:
    """A target grid in shards; a function of its shape, the network and the memory budget, never of the workers.

    Args:
        target_shape: Voxels of the target grid along depth, height and width.
        shards: Its shards, the slabs of a strip in order; their cores tile the grid exactly once.
        halo: The network's worst-case halo before and after a core, of each axis.
        read_shape: Voxels that each shard reads; of slabs, those of each strip.
        shard_bytes: Estimated memory of a worker, beyond an idle worker.
        shard_multiply_adds: Arithmetic of one shard, of slabs on the average.
        smallest_bytes: The least budget with which this grid can be sharded.
        computed: Voxels of the target grid that are computed, if no strip is begun in the middle.
        warm_up: Those that are computed in addition where one is, for a second worker or after an interruption.
        work: Time that each slab of a strip takes after the one before it, in order, in voxels that are computed in it;
            the first has in it what is read ahead, which the last ones save. Of boxes, the one number for all.
        lead: Time that it takes to begin a strip in the middle, likewise.
    """

    target_shape: NetworkShape
    shards: tuple[Shard, ...]
    halo: tuple[tuple[int, int], ...]
    read_shape: NetworkShape
    shard_bytes: int
    shard_multiply_adds: int
    smallest_bytes: int
    computed: int
    work: tuple[int, ...]
    warm_up: int = 0
    lead: int = 0

    @property
    def streamed(self) -> Streamed | None:
        """The way in which strips are walked through; None where shards are boxes."""
        return self.shards[0].streamed

    @property
    def strips(self) -> int:
        """Pieces across the streamed axis; of boxes, their number."""
        return len({shard.read for shard in self.shards})

    @property
    def overhead(self) -> float:
        """Voxels computed over voxels kept, if no strip is begun in the middle."""
        return self.computed / prod(self.target_shape)

    def work_of(self, shard: Shard) -> int:
        """Return the time that a box takes, or a slab right after the one before it, in voxels."""
        return self.work[0 if shard.streamed is None else shard.core[shard.streamed.axis][0] // shard.streamed.height]

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
        pieces, again = f"{shards} of {'x'.join(map(str, self.read_shape))} voxels", ""
        if self.streamed is not None:
            strips = "1 strip" if self.strips == 1 else f"{self.strips} strips"
            pieces = (
                f"{len(self.shards)} slabs of {self.streamed.height} planes along {AXES[self.streamed.axis]} in"
                f" {strips} of {'x'.join(map(str, self.read_shape))} voxels"
            )
            again = f" and {self.warm_up / prod(self.target_shape):.2f} more for each start inside a strip"
        return (
            f"{pieces}, {self.overhead:.2f} voxels computed per voxel kept{again}, about"
            f" {ceil(self.shard_bytes / MIB)} MiB and {self.shard_seconds:.1f} s of a CPU thread each"
            f" (least possible budget: {ceil(self.smallest_bytes / MIB)} MiB)"
        )


def resident_bytes(held: int, *, gpus: int) -> int:
    """Return what an input takes in each worker: on a GPU all of it, on CPUs the pages that it maps at a time.

    Args:
        held: Bytes of the volume and of its correction, which lie once in the memory of a machine.
        gpus: Of a worker.
    """
    return held if gpus else min(held, BLOCK_BYTES)


def plan_shards(
    target_shape: NetworkShape,
    cost: Cost,
    budget_mib: int,
    *,
    resident_bytes: int = 0,
    written_axis: int | None = None,
    name: str = "the volume",
) -> ShardPlan:
    """Divide a target grid into the shards that take the least work within a memory budget.

    That is the whole as one box if the budget holds it, else slabs of strips, or boxes where they compute less. A
    network that works on mirror images too, whose streams would run both ways, gets boxes.

    Args:
        target_shape: Voxels of the target grid along depth, height and width.
        cost: The network's memory and receptive field.
        budget_mib: Memory that a worker may use beyond an idle one, MiB.
        resident_bytes: Memory that the input volume takes in a worker, for every shard; see `resident_bytes`.
        written_axis: Along which the output is written, plane by plane, while its first planes are there: 0 depth, 1
            height, 2 width. None where it runs against that order, or the output is written in the end.
        name: Name of the volume, for the error.

    Raises:
        BudgetError: The budget holds no shard.
    """
    boxes: ShardPlan | BudgetError
    try:
        boxes = plan_boxes(target_shape, cost, budget_mib, resident_bytes=resident_bytes, name=name)
        if len(boxes.shards) == 1:
            return boxes
    except BudgetError as error:
        boxes = error
    streams = None
    if cost.passes == 1:
        streams = _plan_streams(target_shape, cost, budget_mib * MIB, resident_bytes, written_axis)
    if isinstance(boxes, BudgetError):
        if streams is None:
            raise boxes
        return streams
    if streams is None or boxes.computed <= streams.computed + streams.warm_up:
        return boxes
    return replace(streams, smallest_bytes=min(boxes.smallest_bytes, streams.smallest_bytes))


def _plan_streams(
    target_shape: NetworkShape, cost: Cost, budget: int, resident_bytes: int, written_axis: int | None
) -> ShardPlan | None:
    """Find the streamed axis, the strips across it and the height of slabs that take least time in a budget.

    The time, in multiply-adds, is that of the arithmetic and of the steps, those of one start inside a strip included,
    and of writing where that cannot go along.

    Returns:
        None if the budget holds no slab.
    """
    choices = [_choices(size, axis) for size, axis in zip(target_shape, cost.field.axes, strict=True)]
    options: list[tuple[int, int, tuple[tuple[int, int], ...]]] = []
    least = 0
    for axis in range(3):
        across = [lengths[:1] if other == axis else lengths for other, lengths in enumerate(choices)]
        options += [(prod(count * length for count, length in sides), axis, sides) for sides in product(*across)]
        narrowest = NetworkShape(*(lengths[-1][1] for lengths in across))
        smallest = slab_bytes(cost, _streams(cost.field.axes[axis], narrowest[axis])[0], axis, narrowest)
        least = min(least or smallest + resident_bytes, smallest + resident_bytes)
    if least > budget:
        return None
    best: tuple[float, Callable[[], ShardPlan]] | None = None
    for voxels, axis, sides in sorted(options):
        if best is not None and voxels * _arithmetic_of_voxel(cost) >= best[0]:
            break
        read_shape, strips = NetworkShape(*(length for _, length in sides)), prod(count for count, _ in sides)
        for stream in _streams(cost.field.axes[axis], read_shape[axis]):
            needed = slab_bytes(cost, stream, axis, read_shape) + resident_bytes
            if needed > budget:
                break
            total = strips * sum(
                times * cost.step_multiply_adds(step, axis, read_shape) for step, times in stream.kinds.items()
            )
            middle = stream.steps // 2
            begin = stream.warm_up(middle)
            again = sum(
                cost.step_multiply_adds(stream.step(number, middle), axis, read_shape)
                for number in range(begin, middle)
            )
            steps = strips * (stream.steps - stream.first) + middle - begin
            time = total + again + STEP_VOXELS * _arithmetic_of_voxel(cost) * steps
            if written_axis not in (None, axis):
                time += WRITING_SHARE * _arithmetic_of_voxel(cost) * prod(target_shape)
            if best is None or time < best[0]:
                best = (
                    time,
                    partial(_streamed_plan, target_shape, cost, axis, stream, read_shape, needed, again, least),
                )
    return None if best is None else best[1]()


def _streamed_plan(
    target_shape: NetworkShape,
    cost: Cost,
    axis: int,
    stream: Stream,
    read_shape: NetworkShape,
    needed: int,
    again: int,
    least: int,
) -> ShardPlan:
    streamed, (size, padded) = Streamed(axis, stream.height), (target_shape[axis], read_shape[axis])
    slabs = [((low, min(low + stream.height, size)), (0, padded)) for low in range(0, size, stream.height)]
    sides = zip(target_shape, cost.field.axes, read_shape, strict=True)
    pieces = [slabs if other == axis else _pieces(*side) for other, side in enumerate(sides)]
    # The slabs of a strip one after another.
    across = product(*(pieces[other] for other in range(3) if other != axis))
    shards = []
    for strip in across:
        for slab in slabs:
            box = [*strip[:axis], slab, *strip[axis:]]
            shards.append(Shard(triple(core for core, _ in box), triple(read for _, read in box), streamed))
    arithmetic = {step: cost.step_multiply_adds(step, axis, read_shape) for step in stream.kinds}
    steps = [stream.step(number) for number in range(stream.first, stream.steps)]
    traced = {step: number for number, step in reversed(list(enumerate(steps)))}  # at its first occurrence
    voxel = _arithmetic_of_voxel(cost)
    takes = [arithmetic[step] / voxel + GRAPH_VOXELS * (traced[step] == number) for number, step in enumerate(steps)]
    first = 1 - stream.first  # steps until the first slab is there
    middle = stream.steps // 2
    begun = {stream.step(number, middle) for number in range(stream.warm_up(middle), middle + 1)}
    shard_multiply_adds = sum(arithmetic[step] for step in steps) // stream.steps
    return ShardPlan(
        target_shape=target_shape,
        shards=tuple(shards),
        halo=cost.field.halo,
        read_shape=read_shape,
        shard_bytes=needed,
        shard_multiply_adds=shard_multiply_adds,
        smallest_bytes=least,
        computed=round(shard_multiply_adds / voxel * len(shards)),
        work=(round(sum(takes[:first])), *map(round, takes[first:])),
        warm_up=round(again / voxel),
        lead=round(again / voxel) + GRAPH_VOXELS * len(begun),
    )


def _arithmetic_of_voxel(cost: Cost) -> float:
    """Multiply-adds of one pass for a voxel."""
    unit = NetworkShape(*(16 * stride for stride in cost.field.strides))
    return cost.multiply_adds(unit) / prod(unit)


@lru_cache(maxsize=64)
def _streams(axis: AxisField, padded: int) -> tuple[Stream, ...]:
    """Streams along an axis, from the lowest slab to the highest that leaves a volume some slabs to resume at."""
    highest = max(1, min(padded // MIN_SLABS, MAX_HEIGHT) // axis.stride)
    return tuple(
        Stream(axis, padded, axis.stride * count)
        for count in sorted({*range(1, 5), 6, 8, 12, 16, highest})
        if count <= highest
    )


def plan_boxes(
    target_shape: NetworkShape,
    cost: Cost,
    budget_mib: int,
    *,
    resident_bytes: int = 0,
    name: str = "the volume",
) -> ShardPlan:
    """Divide a target grid into the boxes that compute the fewest voxels; arguments and errors: `plan_shards`."""
    axes = tuple(zip(target_shape, cost.field.axes, strict=True))
    choices = [_choices(size, axis) for size, axis in axes]
    narrowest = NetworkShape(*(lengths[-1][1] for lengths in choices))
    smallest_bytes = shard_bytes(cost, narrowest) + resident_bytes

    def computed(option: tuple[tuple[int, int], ...]) -> tuple[int, object]:
        return prod(count * length for count, length in option), option

    for option in sorted(product(*choices), key=computed):
        read_shape = NetworkShape(*(length for _, length in option))
        needed = shard_bytes(cost, read_shape) + resident_bytes
        if needed <= budget_mib * MIB:
            break
    else:
        core = "x".join(str(_pieces(*axis, length)[0][0][1]) for axis, length in zip(axes, narrowest, strict=True))
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
        computed=computed(option)[0],
        work=(prod(read_shape),),
    )


def shard_bytes(cost: Cost, read_shape: NetworkShape) -> int:
    """Estimated memory of a worker for one shard, beyond an idle worker."""
    return int(LIVE_FACTOR * cost.peak_bytes(read_shape)) + VOXEL_BYTES * prod(read_shape) + FIXED_BYTES


def slab_bytes(cost: Cost, stream: Stream, axis: int, read_shape: NetworkShape) -> int:
    """Estimated memory of a worker that streams through a strip, beyond an idle worker."""
    step_bytes = max(
        kept + STEP_FACTOR * (cost.step_bytes(step, axis, read_shape) - kept)
        for step in stream.kinds
        for kept in [cost.given_bytes(step, axis, read_shape)]
    )
    # Resampled planes wait for those of the output.
    planes = 4 * (stream.entry(0)[1] + stream.height) + VOXEL_BYTES * stream.height
    return int(step_bytes) + planes * prod(read_shape) // read_shape[axis] + STREAM_BYTES


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
