"""The steps of a network that streams through a volume along one axis, by the interval arithmetic of its layers.

A step makes the next `height` planes of the output. Through it, every layer makes the planes up to the last one that
the output so far depends on, and no plane is made twice: what later steps still read is kept, in the pieces in which it
was made. The first steps only read ahead and give no output; at both ends of the volume a layer makes no plane beyond
its own first and last, and reads zeros there if one pass over the volume would pad with zeros. All steps between the
ends are alike, down to the shapes.

A stream may begin at any step after a warm-up: the steps before it, from the one at which no plane that the wanted one
depends on has been made yet, on a state of zeros. They are the same steps with the same shapes, so the planes that
count have the same bits; layers of which no plane counts are skipped.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count

from models.network.receptive_field import AxisField

Interval = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """Planes of one piece of a tensor.

    Args:
        piece: Of the kept pieces that the step is given, by number; None for those that the step itself makes.
        start: The first plane, counted in the piece.
        stop: After the last one.
    """

    piece: int | None
    start: int
    stop: int


@dataclass(frozen=True)
class LayerStep:
    """The work of one layer in a step.

    Args:
        planes: That it makes; 0 for a layer that rests.
        reads: For each of its sources, the parts that make up what it reads.
        padding: Planes beyond the start and the end of the volume.
        crop: The planes to keep of the result of a layer that makes the grid finer.
        kept: The planes of the result that later steps read; None if there are none.
        skipped: Nothing that counts depends on the planes: any values will do.
    """

    planes: int
    reads: tuple[tuple[Part, ...], ...] = ()
    padding: Interval = (0, 0)
    crop: Interval = (0, 0)
    kept: Interval | None = None
    skipped: bool = False

    @property
    def read_planes(self) -> tuple[int, ...]:
        """Planes that it reads of each of its sources."""
        return tuple(sum(part.stop - part.start for part in parts) for parts in self.reads)

    @property
    def keeps_all(self) -> bool:
        """True if all planes that it makes are kept, as the tensor that they are."""
        return self.kept == (0, self.planes)


@dataclass(frozen=True)
class Step:
    """One step of a stream; steps that are equal have one graph.

    Args:
        layers: The work of each layer, in the order of the graph.
        pieces: Of the kept pieces that the step is given, the node and the number of planes of each.
        remaining: Of these, then of those that the step makes, in the order of the graph, the numbers of those that
            the next step is given.
    """

    layers: tuple[LayerStep, ...]
    pieces: tuple[Interval, ...]
    remaining: tuple[int, ...]


@dataclass(frozen=True)
class Stream:
    """A walk through a volume along one axis.

    Args:
        field: The network along that axis.
        size: Planes of the network's input, a multiple of its total stride.
        height: Planes of the output that a step makes, likewise.
    """

    field: AxisField
    size: int
    height: int

    @property
    def steps(self) -> int:
        """Steps that make output, numbered from 0; those before them, which only read ahead, have negative numbers."""
        return -(-self.size // self.height)

    @cached_property
    def first(self) -> int:
        """The step at which a stream from the start of the volume begins."""
        return next(number for number in count(0, -1) if not any(self._made_before(number)))

    def entry(self, number: int) -> Interval:
        """The planes of the input that a step is given, `(start, stop)`."""
        return self.made(self.field.entry, number)

    def output(self, number: int) -> Interval:
        """The planes of the output that a step makes, `(start, stop)`."""
        return self.made(self.field.output, number)

    def made(self, node: int, number: int) -> Interval:
        """The planes of a node's tensor that a step makes, `(start, stop)`."""
        return self._made_before(number)[node], self._made_before(number + 1)[node]

    @cached_property
    def kinds(self) -> Counter[Step]:
        """Number of times that each step occurs in a walk through the whole volume."""
        return Counter(self._steps)

    def warm_up(self, number: int) -> int:
        """The step from which a stream has to run for a step to come out as in a stream from the start."""
        depends = self._depends(number)
        for begin in range(number, self.first, -1):
            if all(made <= low for made, low in zip(self._made_before(begin), depends, strict=True)):
                return begin
        return self.first

    def step(self, number: int, wanted: int | None = None) -> Step:
        """Lay out one step; of those before a wanted one, with the work alone that it depends on."""
        step = self._steps[number - self.first]
        if wanted is None or number >= wanted:
            return step
        ends = zip(step.layers, self._made_before(number + 1), self._depends(wanted), strict=True)
        return replace(step, layers=tuple(replace(layer, skipped=stop <= low) for layer, stop, low in ends))

    @cached_property
    def _needs(self) -> tuple[Interval | None, ...]:
        """Of each node, the planes that the outputs of one total stride from plane 0 on depend on, `(start, stop)`."""
        needs = self.field.needs(0, self.field.stride)
        return tuple(
            (needs[node][0], needs[node][1] + 1) if node in needs else None for node in range(len(self.field.sizes))
        )

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(int(self.size / size.step) - size.loss for size in self.field.sizes)

    def _made_before(self, number: int) -> tuple[int, ...]:
        """Planes of each node that the steps before make, from the start of the volume on.

        Those that later outputs of these steps depend on; and of a layer that makes the grid finer all that its source
        determines, so that it reads as few planes twice as its kernel permits.
        """
        # The outputs before a step end with those of one total stride.
        last = number * self.height - self.field.stride
        made: list[int] = []
        for needs, size, planes, reach, sources in zip(
            self._needs, self.field.sizes, self._sizes, self.field.reaches, self.field.sources, strict=True
        ):
            needed = 0 if needs is None else min(max(needs[1] + int(last / size.step), 0), planes)
            if reach.up and needed:
                there = made[sources[0]]
                needed = planes if there == self._sizes[sources[0]] else max(needed, there * reach.stride + reach.first)
            made.append(needed)
        return tuple(made)

    def _depends(self, number: int) -> tuple[int, ...]:
        """The first plane of each node that the output of a step, and those after it, depend on."""
        first = number * self.height
        return tuple(
            planes if needs is None else min(max(needs[0] + int(first / size.step), 0), planes)
            for needs, size, planes in zip(self._needs, self.field.sizes, self._sizes, strict=True)
        )

    def _read(self, node: int, start: int, stop: int) -> Interval:
        """The planes of its sources that a layer reads for those from `start` to `stop`, ends of the volume ignored."""
        reach = self.field.reaches[node]
        low, high = reach.inputs(start, stop - 1)
        if reach.up:  # so that what it makes covers them where its kernel is shorter than its stride
            low, high = min(low, start // reach.stride), max(high, (stop - 1) // reach.stride)
        return low, high + 1

    def _kept_from(self, number: int) -> tuple[int, ...]:
        """Of each node, the first plane that the steps from `number` on read."""
        made, kept = self._made_before(number), list(self._sizes)
        for node, sources in enumerate(self.field.sources):
            if made[node] < self._sizes[node] and self._needs[node] is not None:
                low = max(0, self._read(node, made[node], made[node] + 1)[0])
                for source in sources:
                    kept[source] = min(kept[source], low)
        return tuple(kept)

    @cached_property
    def _steps(self) -> list[Step]:
        steps, pieces = [], list[tuple[int, Interval]]()
        for number in range(self.first, self.steps):
            step, pieces = self._lay_out(number, pieces)
            steps.append(step)
        return steps

    def _lay_out(self, number: int, pieces: list[tuple[int, Interval]]) -> tuple[Step, list[tuple[int, Interval]]]:
        """Lay out a step that is given pieces, node and planes of each, and return those that it leaves too."""
        made = list(zip(self._made_before(number), self._made_before(number + 1), strict=True))
        kept_from = self._kept_from(number + 1)
        layers, new = [], []
        for node, (start, stop) in enumerate(made):
            if start == stop:
                layers.append(LayerStep(0))
                continue
            low, high = self._read(node, start, stop)
            reads, first = [], 0
            for source in self.field.sources[node]:
                first, last = min(max(low, 0), high), max(min(high, self._sizes[source]), low)
                reads.append(tuple(_parts(source, (first, last), pieces, made[source])))
                padding = first - low, high - last
            if not reads or self.field.reaches[node].up:
                padding = 0, 0
            stride = self.field.reaches[node].stride if self.field.reaches[node].up else 0
            crop = (start - first * stride, stop - first * stride) if stride else (0, stop - start)
            kept = max(start, kept_from[node]), stop
            if kept[0] < stop:
                new.append((node, kept))
            kept_planes = (kept[0] - start, stop - start) if kept[0] < stop else None
            layers.append(LayerStep(stop - start, tuple(reads), padding, crop, kept_planes))
        after = [*pieces, *new]
        remaining = tuple(place for place, (node, (_, end)) in enumerate(after) if end > kept_from[node])
        given = tuple((node, end - begin) for node, (begin, end) in pieces)
        return Step(tuple(layers), given, remaining), [after[place] for place in remaining]


def _parts(source: int, wanted: Interval, pieces: list[tuple[int, Interval]], made: Interval) -> Iterator[Part]:
    """Yield where planes of a node are, in their order."""
    here = [(place, planes) for place, (node, planes) in enumerate(pieces) if node == source]
    for place, (start, stop) in [*here, (None, made)]:
        low, high = max(start, wanted[0]), min(stop, wanted[1])
        if low < high:
            yield Part(place, low - start, high - start)
