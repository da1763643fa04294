"""A network applied to a volume slab by slab: the computation of one step of a stream, and what it keeps for later.

Along the streamed axis the layers see the planes that the step lays out, and beyond the ends of the volume, and there
alone, what one pass would pad with; across it they pad as in one pass.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from models.network.graph import Graph, Node, Slot
from models.network.receptive_field import POINTWISE, footprint, receptive_field
from models.network.streaming import Interval, LayerStep, Part, Step

Pads = list[Interval]  # zeros before and after, of each axis of a tensor
Segments = list[tf.Tensor]  # one after another along the streamed axis


class StreamedNetwork:
    """Computes the steps of streams.

    Args:
        model: The network.
        graph: Its layers.
    """

    def __init__(self, model: keras.Model, graph: Graph) -> None:
        operations = dict(_operations(model, ""))
        self._field = receptive_field(graph)
        self._graph, self._operations = graph, [operations[node.name] for node in graph.nodes]

    def dtype(self, node: int) -> str:
        """The data type of a node's tensor."""
        name: str = self._operations[node].output.dtype
        return name

    def __call__(
        self, step: Step, axis: int, entry: tf.Tensor, pieces: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor | None, list[tf.Tensor]]:
        """Compute one step.

        Args:
            step: Its layout.
            axis: The streamed one: 0 depth, 1 height, 2 width.
            entry: The planes of the input that it is given, `(1, depth, height, width, 1)`; there may be none.
            pieces: What earlier steps have kept for it.

        Returns:
            The planes of the output that it makes, None if there are none; and the pieces that it keeps for later.
        """
        made: dict[int, Segments] = {}
        kept = []
        for index, (node, work) in enumerate(zip(self._graph.nodes, step.layers, strict=True)):
            if not work.planes:
                continue
            if node.kind == "InputLayer":
                made[index] = [entry]
            elif work.skipped:
                made[index] = [self._zeros(index, work.planes, axis, entry)]
            else:
                # A layer that pads further than one step reaches may read no planes.
                windows = [
                    [each for part in parts for each in _of_part(part, axis, pieces, made.get(source, []))]
                    or [self._zeros(source, 0, axis, entry)]
                    for source, parts in zip(node.sources, work.reads, strict=True)
                ]
                losses = [field.sizes[node.sources[0]].loss for field in self._field.axes]
                operation = self._operations[index]
                # What needs no neighbours is computed segment by segment, so that none is joined for it.
                together = _in_step(windows, axis) if node.kind in POINTWISE else [[_joined(w, axis) for w in windows]]
                made[index] = [_applied(operation, node, losses, work, axis, each) for each in together]
            if work.kept is not None:
                kept.append(_joined(_cut(made[index], axis, work.kept, copy=True), axis))
        output = made.get(self._graph.output)
        return None if output is None else _joined(output, axis), kept

    def _zeros(self, node: int, planes: int, axis: int, entry: tf.Tensor) -> tf.Tensor:
        sizes = [field.sizes[node] for field in self._field.axes]
        sides = [
            planes
            if other == axis
            else tf.shape(entry)[1 + other] * size.step.denominator // size.step.numerator - size.loss
            for other, size in enumerate(sizes)
        ]
        shape: list[int | None] = [1, None, None, None, self._graph.nodes[node].channels]
        shape[1 + axis] = planes
        return tf.ensure_shape(tf.zeros([1, *sides, shape[-1]], self.dtype(node)), shape)


def _operations(model: keras.Model, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the layers and operations of a network, by the names that its graph has for them."""
    for operation in getattr(model, "operations", model.layers):
        if isinstance(operation, keras.Model):
            yield from _operations(operation, f"{prefix}{operation.name}/")
        else:
            yield prefix + operation.name, operation
    if isinstance(model, keras.Sequential):  # whose list of layers leaves its input out
        for entry in model.inputs:
            yield prefix + entry.name, entry


def _of_part(part: Part, axis: int, pieces: Sequence[tf.Tensor], made: Segments) -> Segments:
    return _cut(made if part.piece is None else [pieces[part.piece]], axis, (part.start, part.stop))


def _in_step(windows: Sequence[Segments], axis: int) -> list[Segments]:
    """Cut windows of equal planes wherever one of them has a new segment; returns the segments side by side."""
    ends = sorted({end for window in windows for end in _ends(window, axis)})
    cut = [[_joined(_cut(window, axis, planes), axis) for planes in pairwise([0, *ends])] for window in windows]
    return [list(each) for each in zip(*cut, strict=True)]


def _joined(segments: Segments, axis: int) -> tf.Tensor:
    return segments[0] if len(segments) == 1 else tf.concat(segments, 1 + axis)


def _cut(segments: Segments, axis: int, planes: Interval, *, copy: bool = False) -> Segments:
    """Return planes of consecutive segments; as copies they hold no memory of the others."""
    cut, start = [], 0
    for segment, stop in zip(segments, _ends(segments, axis), strict=True):
        low, high = max(planes[0], start) - start, min(planes[1], stop) - start
        if axis == 0 and not copy and low < high:  # along the first axis of a tensor, TensorFlow cuts without a copy
            cut.append(segment[0][low:high][None])
        elif low < high:
            cut.append(_planes(segment, axis, (low, high)))
        start = stop
    return cut


def _ends(segments: Segments, axis: int) -> list[int]:
    """Count the planes up to the end of each of consecutive segments."""
    return list(accumulate(segment.shape[1 + axis] for segment in segments))


def _planes(tensor: tf.Tensor, axis: int, planes: Interval) -> tf.Tensor:
    if planes == (0, tensor.shape[1 + axis]):
        return tensor
    return tensor[(slice(None),) * (1 + axis) + (slice(*planes),)]


def _applied(
    operation: Any,  # noqa: ANN401 - a layer or an operation of Keras
    node: Node,
    losses: Sequence[int],
    work: LayerStep,
    axis: int,
    windows: list[tf.Tensor],
) -> tf.Tensor:
    """Apply a layer to the planes that it reads, of a source that lacks some planes to a multiple of its stride."""
    match node.kind:
        case "Conv3D":
            window, kernel = (ops.cast(tensor, operation.compute_dtype) for tensor in (windows[0], operation.kernel))
            pads = _padding(node, losses, work, axis)
            if axis == 2 and work.planes == 1:
                # On CPUs a strided convolution of one channel reads beyond its input where it makes a width of one.
                pads = _along(pads, axis, (work.padding[0], work.padding[1] + operation.strides[axis]))
            padded = _padded(window, pads)
            result = tf.nn.convolution(padded, kernel, operation.strides, "VALID", dilations=operation.dilation_rate)
            if axis == 2:
                result = _planes(result, axis, (0, work.planes))
            if operation.use_bias:
                result += ops.cast(operation.bias, operation.compute_dtype)
            return operation.activation(result)
        case "MaxPooling3D":
            pads, lowest = _padding(node, losses, work, axis), windows[0].dtype.min
            padded = _padded(windows[0], pads, lowest)
            return ops.max_pool(padded, operation.pool_size, operation.strides, padding="valid")
        case "AveragePooling3D":
            # The voxels of the volume count, not the padding.
            pads, ones = _padding(node, losses, work, axis), tf.ones_like(windows[0][..., :1])
            total, share = (
                ops.average_pool(_padded(each, pads), operation.pool_size, operation.strides, padding="valid")
                for each in (windows[0], ones)
            )
            return total / share
        case "ZeroPadding3D":
            across = [(0, 0), *operation.padding, (0, 0)]
            return _padded(windows[0], _along(across, axis, work.padding))
        case "Cropping3D":
            sizes = tf.unstack(tf.shape(windows[0]))[1:4]
            sides = [
                slice(before, size - after) for (before, after), size in zip(operation.cropping, sizes, strict=True)
            ]
            sides[axis] = slice(None)
            return windows[0][(slice(None), *sides)]
    options = {key: _filled(value, windows) for key, value in node.options.items()}
    result = operation(*_filled(node.arguments, windows), **options)
    return result if node.kind in POINTWISE else _planes(result, axis, work.crop)


def _padding(node: Node, losses: Sequence[int], work: LayerStep, axis: int) -> Pads:
    """Padding of a window: along the streamed axis what the step lays out, across it TensorFlow's rule for SAME."""
    pads: Pads = [(0, 0)] * 5
    pool = node.config.get("pool_size", ())
    strides = node.config["strides"] or pool
    for other in range(3) if node.config["padding"] == "same" else ():
        kernel = pool[other] if pool else footprint(node, other)
        total = max(kernel - strides[other] + losses[other] % strides[other], 0)
        pads[1 + other] = total // 2, total - total // 2
    return _along(pads, axis, work.padding)


def _padded(tensor: tf.Tensor, pads: Pads, value: float = 0.0) -> tf.Tensor:
    return tf.pad(tensor, pads, constant_values=value) if any(map(any, pads)) else tensor


def _along(pads: Pads, axis: int, planes: Interval) -> Pads:
    return [*pads[: 1 + axis], planes, *pads[2 + axis :]]


def _filled(value: Any, windows: list[tf.Tensor]) -> Any:  # noqa: ANN401 - arguments of a call
    """Return arguments with the windows in their slots."""
    if isinstance(value, Slot):
        return windows[value.index]
    return type(value)(_filled(item, windows) for item in value) if isinstance(value, list | tuple) else value
