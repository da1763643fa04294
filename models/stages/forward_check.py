"""The forward check: an output shape is right when the forward convolution from it gives the input shape back."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from configs.axes import AXES, TENSOR_AXES, TensorShape
from configs.errors import ShapeError
from models.stages.stage import Axis, Stage
from models.stages.wording import grouped, listed, options, shape_text

LARGEST_SIZE = 2**63 - 1  # TensorFlow counts in signed 64-bit integers


@dataclass(frozen=True)
class ForwardCheck:
    """Check an output shape: the forward convolution from it must give the input shape back.

    Args:
        expected_input: What the forward convolution makes of the output shape.
        ok: Whether that is the input shape.
    """

    expected_input: TensorShape
    ok: bool


def check_shape(shape: Sequence[int], what: str) -> TensorShape:
    """Take a shape for (batch, depth, height, width, channels).

    Raises:
        ShapeError: If it has not five sizes, or one below 1 or beyond what TensorFlow counts.
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
    """Shape that the Keras layer of a stage makes.

    >>> output_shape(Stage(32, (3, 3, 3), (2, 2, 2)), (2, 2, 7, 7, 64))
    (2, 4, 14, 14, 32)
    """
    depth, height, width = (axis.output_size(size) for axis, size in zip(stage.axes, input_shape[1:4], strict=True))
    return input_shape[0], depth, height, width, stage.filters


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
    depth, height, width = (axis.forward_size(size) for axis, size in zip(stage.axes, wanted[1:4], strict=True))
    expected = (wanted[0], depth, height, width, input_shape[4])
    return ForwardCheck(expected, ok=expected == input_shape and wanted[4] == stage.filters)


def accepted_shapes(stage: Stage, input_shape: TensorShape) -> tuple[range, range, range]:
    """Output sizes per axis that `tf.nn` accepts for an input; each combination of them is a shape that it accepts."""
    depth, height, width = (axis.accepted_sizes(size) for axis, size in zip(stage.axes, input_shape[1:4], strict=True))
    return depth, height, width


def stage_making(stage: Stage, input_shape: TensorShape, wanted: Sequence[int]) -> Stage:
    """Give a stage the output padding with which its layer makes a shape that `tf.nn` takes as `output_shape`.

    Args:
        stage: The stage; its own output padding does not count.
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
    doing = f"Cannot make {shape_text(target)} of {shape_text(input_shape)}"
    if not check.ok:
        raise ShapeError(f"{doing}: {'; '.join(_mismatches(stage, input_shape, check, target))}.")
    sizes = zip(stage.axes, input_shape[1:4], target[1:4], strict=True)
    added = [_output_padding(axis, size, wanted_size) for axis, size, wanted_size in sizes]
    refused = [name for name, axis, padding in zip(AXES, stage.axes, added, strict=True) if padding >= axis.stride]
    if refused:
        raise ShapeError(
            f"{doing} with the Keras layer: tf.nn accepts that output_shape, but an even kernel with output padding on"
            f" another axis stays below the full size on {listed(refused)}.",
            "An odd kernel there would do.",
        )
    return replace(stage, output_padding=(added[0], added[1], added[2]))


def _output_padding(axis: Axis, size: int, wanted: int) -> int:
    tail = wanted - (size - 1) * axis.stride
    return tail - (axis.span % 2 if axis.padding == "same" else axis.span)


def _mismatches(stage: Stage, input_shape: TensorShape, check: ForwardCheck, wanted: TensorShape) -> list[str]:
    remarks = []
    if wanted[0] != input_shape[0]:
        remarks.append(("batch", f"it stays {input_shape[0]}"))
    for i, (name, axis) in enumerate(zip(AXES, stage.axes, strict=True), start=1):
        size, made, gives = input_shape[i], wanted[i], check.expected_input[i]
        if gives != size:
            strides = axis.strides_between(size, made) if max(stage.dilation_rate) == 1 else ()
            remark = (
                f"forward convolution (kernel {axis.kernel_size}, stride {axis.stride}, padding {axis.padding}) brings"
                f" {made} back to {gives}, not to {size}; size {options(axis.accepted_sizes(size))} would do"
            )
            remarks.append((name, remark + (f", or stride {options(strides)}" if strides else "")))
    if wanted[4] != stage.filters:
        remarks.append(("channels", f"the stage has {stage.filters} filters"))
    return grouped(remarks)
