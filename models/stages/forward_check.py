"""The forward check: an output shape is right when the forward convolution from it gives the input shape back."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from configs.axes import AXES, TENSOR_AXES, TensorShape, triple
from configs.errors import ShapeError
from models.stages.stage import Axis, Stage
from models.stages.wording import grouped, listed, options, shape_text

LARGEST_SIZE = 2**63 - 1  # TensorFlow counts in signed 64-bit integers


@dataclass(frozen=True)
class ForwardCheck:
    """Result of checking an output shape by the forward convolution from it.

    Args:
        expected_input: What the forward convolution makes of the output shape.
        ok: Whether that is the input shape, and the output has the stage's filters as channels.
    """

    expected_input: TensorShape
    ok: bool


def check_shape(shape: Sequence[int], what: str) -> TensorShape:
    """Check a shape given as (batch, depth, height, width, channels).

    Raises:
        ShapeError: It does not have five sizes, or one is below 1 or beyond what TensorFlow counts.
    """
    if len(shape) != len(TENSOR_AXES):
        raise ShapeError(
            f"The {what} has {len(shape)} sizes, but it needs five: {', '.join(TENSOR_AXES)}, such as 2,2,7,7,64."
            f" Received {shape_text(shape)}.",
        )
    for name, size in zip(TENSOR_AXES, shape, strict=True):
        if not 1 <= size <= LARGEST_SIZE:
            rule = "1 or more" if size < 1 else f"at most {LARGEST_SIZE}"
            raise ShapeError(f"The {what} has {name} {size}, but every size is {rule}. Received {shape_text(shape)}.")
    batch, depth, height, width, channels = shape
    return batch, depth, height, width, channels


def output_shape(stage: Stage, input_shape: TensorShape) -> TensorShape:
    """Return the shape that the Keras layer of a stage makes.

    >>> output_shape(Stage(32, (3, 3, 3), (2, 2, 2)), (2, 2, 7, 7, 64))
    (2, 4, 14, 14, 32)
    """
    sizes = triple(axis.output_size(size) for axis, size in zip(stage.axes, input_shape[1:4], strict=True))
    return input_shape[0], *sizes, stage.filters


def forward_check(stage: Stage, input_shape: TensorShape, wanted: TensorShape) -> ForwardCheck:
    """Check an output shape as `tf.nn.conv3d_transpose` does, by the shape of the forward convolution from it.

    Args:
        stage: The stage.
        input_shape: What the stage is given.
        wanted: The output shape in question.

    >>> stage = Stage(32, (3, 3, 3), (1, 1, 1))
    >>> forward_check(stage, (2, 2, 7, 7, 64), (2, 4, 14, 14, 32))
    ForwardCheck(expected_input=(2, 4, 14, 14, 64), ok=False)
    """
    sizes = triple(axis.forward_size(size) for axis, size in zip(stage.axes, wanted[1:4], strict=True))
    expected = (wanted[0], *sizes, input_shape[4])
    return ForwardCheck(expected, ok=expected == input_shape and wanted[4] == stage.filters)


def accepted_shapes(stage: Stage, input_shape: TensorShape) -> tuple[range, range, range]:
    """Return the output sizes per axis that `tf.nn` accepts for an input, in any combination."""
    return triple(axis.accepted_sizes(size) for axis, size in zip(stage.axes, input_shape[1:4], strict=True))


def stage_making(stage: Stage, input_shape: TensorShape, wanted: Sequence[int]) -> Stage:
    """Return a stage with the output padding for which its layer makes a shape that `tf.nn` takes as `output_shape`.

    Args:
        stage: The stage; its own output padding is ignored.
        input_shape: What the stage is given.
        wanted: The output shape.

    Returns:
        The stage itself where it makes that shape already.

    Raises:
        ShapeError: If the forward convolution does not bring the shape back to the input, or if the operation could
            make it but not the layer.
    """
    target = check_shape(wanted, "wanted output")
    if output_shape(stage, input_shape) == target:
        return stage
    check = forward_check(stage, input_shape, target)
    problem = f"Cannot make {shape_text(target)} of {shape_text(input_shape)}"
    if not check.ok:
        raise ShapeError(f"{problem}: {'; '.join(_mismatches(stage, input_shape, check, target))}.")
    added = triple(map(_output_padding, stage.axes, input_shape[1:4], target[1:4]))
    refused = [name for name, axis, padding in zip(AXES, stage.axes, added, strict=True) if padding >= axis.stride]
    if refused:
        raise ShapeError(
            f"{problem} with the Keras layer: tf.nn accepts that output_shape, but an even kernel with output padding"
            f" on another axis stays below the full size on {listed(refused)}.",
            "An odd kernel there would do.",
        )
    return replace(stage, output_padding=added)


def _output_padding(axis: Axis, size: int, wanted: int) -> int:
    tail = wanted - (size - 1) * axis.stride
    return tail - (axis.span % 2 if axis.padding == "same" else axis.span)


def _mismatches(stage: Stage, input_shape: TensorShape, check: ForwardCheck, wanted: TensorShape) -> list[str]:
    found = []
    if wanted[0] != input_shape[0]:
        found.append(("batch", f"it stays {input_shape[0]}"))
    sizes = zip(AXES, stage.axes, input_shape[1:4], wanted[1:4], check.expected_input[1:4], strict=True)
    for name, axis, size, made, returned in sizes:
        if returned != size:
            strides = axis.strides_between(size, made) if max(stage.dilation_rate) == 1 else ()
            mismatch = (
                f"forward convolution (kernel {axis.kernel_size}, stride {axis.stride}, padding {axis.padding}) brings"
                f" {made} back to {returned}, not to {size}; size {options(axis.accepted_sizes(size))} would do"
            )
            found.append((name, mismatch + (f", or stride {options(strides)}" if strides else "")))
    if wanted[4] != stage.filters:
        found.append(("channels", f"the stage has {stage.filters} filters"))
    return grouped(found)
