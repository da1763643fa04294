"""Which input an output needs: interval arithmetic over the layers of a network, per axis and side.

Every layer maps an interval of its output to the interval of its input that it reads:

- convolution, pooling, padding, cropping: output `j` reads inputs `j*s + t - before` for taps `0 <= t < ke`;
- transposed convolution, repetition: output `j = n*s + t - before` reads the inputs `n` for which a tap `t` fits.

`ke = (kernel_size - 1) * dilation + 1`. SAME padding is `max(0, ke - s)` where sizes are multiples of the stride, its
odd voxel coming after (TensorFlow's rule). Where branches join, the hull of their intervals counts.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor, lcm

from configs.axes import AXES, NetworkShape
from configs.errors import ShapeError
from models.network.graph import Graph
from models.network.layer_reach import Extent, Reach, layer_reach


@dataclass(frozen=True)
class AxisField:
    """The receptive field of a network along one axis.

    Args:
        sources: Which nodes each node reads, in the order of the graph.
        reaches: Which voxels of them it reads.
        extents: The size of each node's tensor.
        entry: The node that is the network's input.
        output: The node that is its output.
    """

    sources: tuple[tuple[int, ...], ...]
    reaches: tuple[Reach, ...]
    extents: tuple[Extent, ...]
    entry: int
    output: int

    @cached_property
    def stride(self) -> int:
        """The total stride: an input whose size is a multiple of it has whole sizes at every layer."""
        return lcm(*(extent.step.numerator for extent in self.extents))

    @cached_property
    def halo(self) -> tuple[int, int]:
        """Voxels that a core depends on before and after itself, the worst over its positions."""
        needed = [(place, *self.needed(place, place + 1)) for place in range(self.stride)]
        return max(place - start for place, start, _ in needed), max(stop - place - 1 for place, _, stop in needed)

    @cached_property
    def trim(self) -> tuple[int, int]:
        """Voxels at the start and at the end of an aligned read inside the volume that do not come out exact.

        At most the halo: that is the worst over all positions, this is met at an aligned edge.
        """
        places = range(max(self.halo) + 2 * self.stride)
        before = max((place + 1 for place in places if self.read(place, place + 1)[0] < 0), default=0)
        after = max((place + 1 for place in places if self.read(-place - 1, -place)[1] > 0), default=0)
        return before, after

    def needed(self, start: int, stop: int) -> tuple[int, int]:
        """The input `[first, end)` that the core `[start, stop)` depends on, on a volume without end."""
        low, high = self._needs(start, stop).get(self.entry, (start, start - 1))
        return low, high + 1

    def read(self, start: int, stop: int) -> tuple[int, int]:
        """The input `[first, end)`, aligned to the total stride, from which the core `[start, stop)` comes out exact.

        Computed from that input alone, the tensor of every layer holds what the core depends on.
        """
        needs = self._needs(start, stop).items()
        first = min(floor(low * self.extents[node].step) for node, (low, _) in needs)
        end = max(ceil((high + 1 + self.extents[node].loss) * self.extents[node].step) for node, (_, high) in needs)
        return first // self.stride * self.stride, -(-end // self.stride) * self.stride

    def _needs(self, start: int, stop: int) -> dict[int, tuple[int, int]]:
        """The first and last voxel of each node's tensor that the core `[start, stop)` depends on."""
        needs = {self.output: (start, stop - 1)}
        for node in reversed(range(self.output + 1)):
            if node not in needs:
                continue
            low, high = self.reaches[node].inputs(*needs[node])
            for source in self.sources[node] if low <= high else ():
                known = needs.get(source, (low, high))
                needs[source] = min(low, known[0]), max(high, known[1])
        return needs


@dataclass(frozen=True)
class ReceptiveField:
    """The receptive field of a network.

    Args:
        axes: Along depth, height and width.
    """

    axes: tuple[AxisField, AxisField, AxisField]

    @property
    def strides(self) -> NetworkShape:
        """The total stride of each axis."""
        return NetworkShape(*(axis.stride for axis in self.axes))

    @property
    def halo(self) -> tuple[tuple[int, int], ...]:
        """The worst-case halo before and after a core, of each axis."""
        return tuple(axis.halo for axis in self.axes)


def receptive_field(graph: Graph) -> ReceptiveField:
    """Derive the receptive field of a network that returns a volume on the grid of its input.

    Args:
        graph: Its layers, channels last.

    Raises:
        ShapeError: A layer has no finite receptive field, branches of different sizes are joined, or the output is on
            another grid than the input.
    """
    depth, height, width = (_axis_field(graph, axis) for axis in range(3))
    return ReceptiveField((depth, height, width))


def _axis_field(graph: Graph, axis: int) -> AxisField:
    reaches: list[Reach] = []
    extents: list[Extent] = []
    for node in graph.nodes:
        sizes = {extents[source] for source in node.sources} or {Extent()}
        if len(sizes) > 1:
            raise ShapeError(
                f"Cannot shard this network: layer {node.name} joins tensors of different {AXES[axis]}:"
                f" {' and '.join(sorted(str(size) for size in sizes))} for an input of n."
            )
        reach, extent = layer_reach(node, axis, sizes.pop())
        reaches.append(reach)
        extents.append(extent)
    if extents[graph.output] != Extent():
        raise ShapeError(
            f"Cannot shard this network: its output has another {AXES[axis]} than its input,"
            f" {extents[graph.output]} for an input of n. A network restores on the grid that it is given."
        )
    entry = next(index for index, node in enumerate(graph.nodes) if node.kind == "InputLayer")
    return AxisField(tuple(node.sources for node in graph.nodes), tuple(reaches), tuple(extents), entry, graph.output)
