"""Reach of one layer: the voxels of its input on which one voxel of its output depends."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from configs.errors import ShapeError
from models.network.graph import Node

# Layers and operations whose output at a voxel depends on their inputs at that voxel alone.
POINTWISE = frozenset(
    [
        *(
            "InputLayer",
            "Add",
            "Subtract",
            "Multiply",
            "Average",
            "Maximum",
            "Minimum",
            "Identity",
            "Rescaling",
            "Dense",
        ),
        *("Activation", "ReLU", "LeakyReLU", "ELU", "Dropout", "SpatialDropout3D", "GaussianNoise", "GaussianDropout"),
        *("ActivityRegularization", "Divide", "TrueDivide", "Negative", "Absolute", "Square", "Sqrt", "Exp", "Clip"),
        *("Tanh", "Sigmoid", "Softplus", "Softsign", "Relu", "Relu6", "Silu", "Gelu", "Elu", "LeakyRelu", "Cast"),
    ]
)
# Pointwise where they work along the channels only.
ALONG_AXIS = frozenset({"Concatenate", "Softmax", "LayerNormalization", "BatchNormalization"})


@dataclass(frozen=True)
class Reach:
    """Which input voxels one layer reads along one axis.

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
        """The first and last input voxel that the output voxels from `low` to `high`, both included, read.

        >>> Reach(2, -1, 2, up=True).inputs(0, 1)
        (-1, 1)
        """
        if self.up:
            return -((self.last - low) // self.stride), (high - self.first) // self.stride
        return low * self.stride + self.first, high * self.stride + self.last


@dataclass(frozen=True)
class Extent:
    """The size of a tensor along one axis: `n / step - loss` for an input of `n` voxels."""

    step: Fraction = Fraction(1)
    loss: int = 0

    def __str__(self) -> str:
        size = "n" if self.step == 1 else f"n/({self.step})"
        return f"{size} - {self.loss}" if self.loss else size


def layer_reach(node: Node, axis: int, size: Extent) -> tuple[Reach, Extent]:
    """Reach of a layer along one axis, and the size of its output.

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
        f"Cannot shard this network: layer {node.name} ({node.kind}) would see the shard, not the volume: {reason}.",
        "Replace it by a layer whose output depends on a neighbourhood of fixed size.",
    )


def _window(node: Node, size: Extent, kernel: int, stride: int) -> tuple[Reach, Extent]:
    """Convolution or pooling: `o = ceil(i/s)` for SAME, `floor((i - ke)/s) + 1` for VALID."""
    step = size.step * stride
    match node.config["padding"]:
        case "same":
            # Sizes are multiples of the stride but for what was cropped before: that adds to the padding.
            before = max(0, kernel - stride + size.loss % stride) // 2
            return Reach(stride, -before, kernel - 1 - before), Extent(step, size.loss // stride)
        case "valid":
            return Reach(stride, 0, kernel - 1), Extent(step, -((-size.loss - kernel) // stride) - 1)
    raise _refused(node, f"padding {node.config['padding']!r} is neither same nor valid")


def _convolution(node: Node, axis: int, size: Extent) -> tuple[Reach, Extent]:
    return _window(node, size, _footprint(node, axis), node.config["strides"][axis])


def _pooling(node: Node, axis: int, size: Extent) -> tuple[Reach, Extent]:
    pool = node.config["pool_size"]
    return _window(node, size, pool[axis], (node.config["strides"] or pool)[axis])


def _transposed(node: Node, axis: int, size: Extent) -> tuple[Reach, Extent]:
    """Transposed convolution: `o = i*s` for SAME, `(i - 1)*s + max(ke, s)` for VALID."""
    if node.config.get("output_padding") is not None:
        raise _refused(node, "output_padding gives sizes that are no multiple of its stride; leave it None")
    kernel, stride = _footprint(node, axis), node.config["strides"][axis]
    overlap = max(0, kernel - stride)
    before, gain = (overlap // 2, 0) if node.config["padding"] == "same" else (0, overlap)
    extent = Extent(size.step / stride, size.loss * stride - gain)
    return Reach(stride, -before, kernel - 1 - before, up=True), extent


def _repetition(node: Node, axis: int, size: Extent) -> tuple[Reach, Extent]:
    times = node.config["size"][axis]
    return Reach(times, 0, times - 1, up=True), Extent(size.step / times, size.loss * times)


def _cropping(node: Node, axis: int, size: Extent) -> tuple[Reach, Extent]:
    before, after = node.config["cropping"][axis]
    return Reach(1, before, before), Extent(size.step, size.loss + before + after)


def _padding(node: Node, axis: int, size: Extent) -> tuple[Reach, Extent]:
    before, after = node.config["padding"][axis]
    return Reach(1, -before, -before), Extent(size.step, size.loss - before - after)


def _footprint(node: Node, axis: int) -> int:
    kernel: int = node.config["kernel_size"][axis]
    dilation: int = node.config["dilation_rate"][axis]
    return (kernel - 1) * dilation + 1


RULES: Mapping[str, Callable[[Node, int, Extent], tuple[Reach, Extent]]] = {
    "Conv3D": _convolution,
    "Conv3DTranspose": _transposed,
    "PhasedConv3DTranspose": _transposed,
    "MaxPooling3D": _pooling,
    "AveragePooling3D": _pooling,
    "UpSampling3D": _repetition,
    "Cropping3D": _cropping,
    "ZeroPadding3D": _padding,
}
