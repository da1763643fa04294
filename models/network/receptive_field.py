"""The input that an output of a network depends on, by interval arithmetic over its layers, per axis and side.

Every layer maps an interval of its output to the interval of its input that it reads:

- convolution, pooling, padding, cropping: output `j` reads inputs `j*s + t - before` for taps `0 <= t < ke`;
- transposed convolution, repetition: output `j = n*s + t - before` reads the inputs `n` for which a tap `t` fits.

`ke = (kernel_size - 1) * dilation + 1`. SAME padding is `max(0, ke - s)` where sizes are multiples of the stride, its
odd voxel coming after (TensorFlow's rule). Where branches join, the hull of their intervals counts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import ceil, floor, lcm

from configs.axes import AXES, NetworkShape, triple
from configs.errors import ShapeError
from models.network.graph import Graph, Node, shown

# Layers and operations whose output at a voxel depends on their inputs at that voxel alone.
POINTWISE = frozenset(
    [
        *("InputLayer", "Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Identity", "Rescaling"),
        *("Activation", "ReLU", "LeakyReLU", "ELU", "Dropout", "SpatialDropout3D", "GaussianNoise", "GaussianDropout"),
        *("ActivityRegularization", "Divide", "TrueDivide", "Negative", "Absolute", "Square", "Sqrt", "Exp", "Clip"),
        *("Tanh", "Sigmoid", "Softplus", "Softsign", "Relu", "Relu6", "Silu", "Gelu", "Elu", "LeakyRelu"),
        *("Cast", "Dense"),
    ]
)
# Pointwise where they work along the channels only.
ALONG_AXIS = frozenset({"Concatenate", "Softmax", "LayerNormalization", "BatchNormalization"})


@dataclass(frozen=True)
class Reach:
    """The input voxels that one layer reads along one axis.

    Args:
        stride: Input voxels per output voxel, or output voxels per input voxel where `up`.
        first: Offset of the first tap.
        last: Offset of the last tap.
        up: Whether the layer makes the grid finer: output `n*stride + offset` reads input `n`.
    """

    stride: int = 1
    first: int = 0
    last: int = 0
    up: bool = False

    def inputs(self, low: int, high: int) -> tuple[int, int]:
        """Return the first and last input voxel that the output voxels from `low` to `high`, both included, read.

        >>> Reach(2, -1, 2, up=True).inputs(0, 1)
        (-1, 1)
        """
        if self.up:
            return -((self.last - low) // self.stride), (high - self.first) // self.stride
        return low * self.stride + self.first, high * self.stride + self.last


@dataclass(frozen=True)
class TensorSize:
    """The size of a tensor along one axis: `n / step - loss` for an input of `n` voxels."""

    step: Fraction = Fraction(1)
    loss: int = 0

    def __str__(self) -> str:
        size = "n" if self.step == 1 else f"n/({self.step})"
        return f"{size} - {self.loss}" if self.loss else size


def layer_reach(node: Node, axis: int, size: TensorSize) -> tuple[Reach, TensorSize]:
    """Find the reach of a layer along one axis, and the size of its output.

    Args:
        node: The layer.
        axis: 0 depth, 1 height, 2 width.
        size: The size of its input.

    Raises:
        ShapeError: No finite receptive field is known for the layer; the message names it.
    """
    if node.config.get("data_format", "channels_last") != "channels_last":
        raise _refused(node, "it works channels first")
    if not all(isinstance(constant, bool | int | float | str) for constant in node.constants):
        raise _refused(node, "it is called with an array of its own, which may differ from place to place")
    if node.kind in ALONG_AXIS:
        along = node.config.get("axis", -1)
        if not set([along] if isinstance(along, int) else along) <= {-1, 4}:
            raise _refused(node, f"it works along axis {along}, over space")
    elif node.kind not in POINTWISE:
        rule = RULES.get(node.kind)
        if rule is None:
            raise _refused(node, "no finite receptive field is known for a layer of this kind")
        return rule(node, axis, size)
    return Reach(), size


def _refused(node: Node, reason: str) -> ShapeError:
    return ShapeError(
        f"Cannot shard this network: layer {shown(node.name)} ({shown(node.kind)}) would see the shard,"
        f" not the volume: {reason}.",
        "Replace it by a layer whose output depends on a neighbourhood of fixed size.",
    )


def _window(node: Node, axis: int, size: TensorSize) -> tuple[Reach, TensorSize]:
    """Convolution or pooling: `o = ceil(i/s)` for SAME, `floor((i - ke)/s) + 1` for VALID."""
    pool = node.config.get("pool_size", ())
    kernel = pool[axis] if pool else footprint(node, axis)
    stride = (node.config["strides"] or pool)[axis]
    step = size.step * stride
    match node.config["padding"]:
        case "same":
            # Sizes are multiples of the stride but for what was cropped before: that adds to the padding.
            before = max(0, kernel - stride + size.loss % stride) // 2
            return Reach(stride, -before, kernel - 1 - before), TensorSize(step, size.loss // stride)
        case "valid":
            return Reach(stride, 0, kernel - 1), TensorSize(step, -((-size.loss - kernel) // stride) - 1)
    raise _refused(node, f"padding {node.config['padding']!r} is neither same nor valid")


def _transposed(node: Node, axis: int, size: TensorSize) -> tuple[Reach, TensorSize]:
    """Transposed convolution: `o = i*s` for SAME, `(i - 1)*s + max(ke, s)` for VALID."""
    if node.config.get("output_padding") is not None:
        raise _refused(node, "output_padding gives sizes that are no multiple of its stride; leave it None")
    kernel, stride = footprint(node, axis), node.config["strides"][axis]
    overlap = max(0, kernel - stride)
    before, gain = (overlap // 2, 0) if node.config["padding"] == "same" else (0, overlap)
    made = TensorSize(size.step / stride, size.loss * stride - gain)
    return Reach(stride, -before, kernel - 1 - before, up=True), made


def _repetition(node: Node, axis: int, size: TensorSize) -> tuple[Reach, TensorSize]:
    copies = node.config["size"][axis]
    return Reach(copies, 0, copies - 1, up=True), TensorSize(size.step / copies, size.loss * copies)


def _cropping(node: Node, axis: int, size: TensorSize) -> tuple[Reach, TensorSize]:
    before, after = node.config["cropping"][axis]
    return Reach(1, before, before), TensorSize(size.step, size.loss + before + after)


def _padding(node: Node, axis: int, size: TensorSize) -> tuple[Reach, TensorSize]:
    before, after = node.config["padding"][axis]
    return Reach(1, -before, -before), TensorSize(size.step, size.loss - before - after)


def footprint(node: Node, axis: int) -> int:
    """Voxels from the first tap of a convolution to its last, both included, along one axis."""
    kernel: int = node.config["kernel_size"][axis]
    dilation: int = node.config["dilation_rate"][axis]
    return (kernel - 1) * dilation + 1


RULES: Mapping[str, Callable[[Node, int, TensorSize], tuple[Reach, TensorSize]]] = {
    "Conv3D": _window,
    "Conv3DTranspose": _transposed,
    "PhasedConv3DTranspose": _transposed,
    "MaxPooling3D": _window,
    "AveragePooling3D": _window,
    "UpSampling3D": _repetition,
    "Cropping3D": _cropping,
    "ZeroPadding3D": _padding,
}


@dataclass(frozen=True)
class AxisField:
    """The receptive field of a network along one axis.

    Args:
        sources: The nodes that each node reads, in the order of the graph.
        reaches: The voxels of them that it reads.
        sizes: The size of each node's tensor.
        entry: The node that is the network's input.
        output: The node that is its output.
        mirrored: Whether the network also works on the mirror image, so that both sides need what either needs.
    """

    sources: tuple[tuple[int, ...], ...]
    reaches: tuple[Reach, ...]
    sizes: tuple[TensorSize, ...]
    entry: int
    output: int
    mirrored: bool = False

    @cached_property
    def stride(self) -> int:
        """The total stride: an input whose size is a multiple of it has whole sizes at every layer."""
        return lcm(*(size.step.numerator for size in self.sizes))

    @cached_property
    def halo(self) -> tuple[int, int]:
        """Voxels that a core depends on before and after itself, the most over its positions."""
        needed = [(place, *self.needed(place, place + 1)) for place in range(self.stride)]
        return self._sides(
            max(place - start for place, start, _ in needed), max(stop - place - 1 for place, _, stop in needed)
        )

    @cached_property
    def trim(self) -> tuple[int, int]:
        """Voxels at the start and at the end of an aligned read inside the volume that do not come out exact.

        At most the halo, which is the most over all positions; this is for an aligned edge.
        """
        places = range(max(self.halo) + 2 * self.stride)
        before = max((place + 1 for place in places if self.read(place, place + 1)[0] < 0), default=0)
        after = max((place + 1 for place in places if self.read(-place - 1, -place)[1] > 0), default=0)
        return self._sides(before, after)

    def _sides(self, before: int, after: int) -> tuple[int, int]:
        return (max(before, after),) * 2 if self.mirrored else (before, after)

    def needed(self, start: int, stop: int) -> tuple[int, int]:
        """The input `[first, end)` that the core `[start, stop)` depends on, on a volume without end."""
        low, high = self.needs(start, stop).get(self.entry, (start, start - 1))
        return low, high + 1

    def read(self, start: int, stop: int) -> tuple[int, int]:
        """The input `[first, end)`, aligned to the total stride, from which the core `[start, stop)` comes out exact.

        Computed from that input alone, the tensor of every layer holds what the core depends on.
        """
        needs = self.needs(start, stop).items()
        first = min(floor(low * self.sizes[node].step) for node, (low, _) in needs)
        end = max(ceil((high + 1 + self.sizes[node].loss) * self.sizes[node].step) for node, (_, high) in needs)
        return first // self.stride * self.stride, -(-end // self.stride) * self.stride

    def needs(self, start: int, stop: int) -> dict[int, tuple[int, int]]:
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

    def mirrored(self) -> "ReceptiveField":
        """The field of a network that works on every mirror image too."""
        return ReceptiveField(triple(replace(axis, mirrored=True) for axis in self.axes))

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
    return ReceptiveField(triple(_axis_field(graph, axis) for axis in range(3)))


def _axis_field(graph: Graph, axis: int) -> AxisField:
    reaches: list[Reach] = []
    sizes: list[TensorSize] = []
    for node in graph.nodes:
        joined = {sizes[source] for source in node.sources} or {TensorSize()}
        if len(joined) > 1:
            raise ShapeError(
                f"Cannot shard this network: layer {shown(node.name)} joins tensors of different {AXES[axis]}:"
                f" {' and '.join(sorted(str(size) for size in joined))} for an input of n."
            )
        reach, made = layer_reach(node, axis, joined.pop())
        reaches.append(reach)
        sizes.append(made)
    if sizes[graph.output] != TensorSize():
        raise ShapeError(
            f"Cannot shard this network: its output has another {AXES[axis]} than its input,"
            f" {sizes[graph.output]} for an input of n. A network restores on the grid that it is given."
        )
    entry = next(index for index, node in enumerate(graph.nodes) if node.kind == "InputLayer")
    return AxisField(tuple(node.sources for node in graph.nodes), tuple(reaches), tuple(sizes), entry, graph.output)
