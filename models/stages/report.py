"""Report on a chain of stages: shapes, cost, overlap, shift, receptive field, warnings."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from configs.axes import NetworkShape, TensorShape, Triple, total_stride, triple
from configs.errors import ShapeError
from models.stages.diagnostics import warnings_about
from models.stages.forward_check import ForwardCheck, check_shape, forward_check, output_shape
from models.stages.frameworks import Elsewhere, caffe_equivalent, torch_equivalent
from models.stages.stage import Stage, latent_receptive_field

MAX_VALUES = 2**27  # of latent, weights and outputs: 512 MiB in float32, and running them holds them several times


@dataclass(frozen=True)
class StageReport:
    """Report on one stage.

    Args:
        input_shape: (batch, depth, height, width, channels).
        output_shape: Likewise.
        weights_shape: TensorFlow's layout, (depth, height, width, out, in).
        filters, kernel_size, strides, padding: As in the stage.
        parameters: Weights and biases.
        multiply_adds: One for each pair of input voxel and tap, channels and batch included.
        forward_check: The forward convolution from the output shape.
        caffe: The stage as a Caffe layer.
        torch: The stage as a PyTorch module.
        overlap: Per axis, the taps that reach each output phase away from the border.
        holes: Whether a phase is reached by no tap, so that its voxels hold the bias alone.
        checkerboard: Whether phases are reached by unequal numbers of taps.
        shift: Per axis, how far equal taps move the image, in voxels of this stage's output; see `Axis.shift`.
    """

    input_shape: TensorShape
    output_shape: TensorShape
    weights_shape: TensorShape
    filters: int
    kernel_size: Triple
    strides: Triple
    padding: str
    parameters: int
    multiply_adds: int
    forward_check: ForwardCheck
    caffe: Elsewhere
    torch: Elsewhere
    overlap: tuple[tuple[int, ...], ...]
    holes: bool
    checkerboard: bool
    shift: tuple[float, float, float]


@dataclass(frozen=True)
class Report:
    """Report on a chain of stages.

    Args:
        stages: From the latent to the output.
        output_shape: (batch, depth, height, width, channels).
        total_stride: Output voxels per latent voxel, per axis.
        receptive_field: Per axis, how many latent voxels (before, after) its own an output voxel depends on.
        warnings: What goes wrong without an error, with the remedy.
    """

    stages: tuple[StageReport, ...]
    output_shape: TensorShape
    total_stride: NetworkShape
    receptive_field: tuple[tuple[int, int], ...]
    warnings: tuple[str, ...]


def describe(latent_shape: Sequence[int], stages: Sequence[Stage]) -> Report:
    """Describe a chain of stages.

    Args:
        latent_shape: (batch, depth, height, width, channels).
        stages: From the latent to the output, at least one.

    Raises:
        ShapeError: If the latent is no shape, there is no stage, or a size grows beyond what TensorFlow counts.
    """
    shape = check_shape(latent_shape, "latent")
    if not stages:
        raise ShapeError("An upsampler has at least one stage.")
    reports = []
    for number, stage in enumerate(stages, start=1):
        reports.append(_describe_stage(stage, shape))
        shape = check_shape(reports[-1].output_shape, f"output of stage {number}")
    return Report(
        stages=tuple(reports),
        output_shape=shape,
        total_stride=total_stride(stage.strides for stage in stages),
        receptive_field=latent_receptive_field(stages),
        warnings=tuple(warnings_about(stages)),
    )


def check_runnable(report: Report) -> None:
    """Refuse stages too large to be built and run on any machine.

    Raises:
        ShapeError: If latent, weights and outputs hold too many values.
    """
    values = prod(report.stages[0].input_shape)
    values += sum(prod(stage.output_shape) + stage.parameters for stage in report.stages)
    if values > MAX_VALUES:
        raise ShapeError(
            f"Cannot build and run these stages: latent, weights and outputs hold {values:,} values, more than"
            f" {MAX_VALUES:,}.",
            "The same stages on a smaller latent, or with fewer filters, would do.",
        )


def _describe_stage(stage: Stage, shape: TensorShape) -> StageReport:
    made, weights = output_shape(stage, shape), stage.weights_shape(shape[4])
    overlap = tuple(axis.overlap for axis in stage.axes)
    return StageReport(
        input_shape=shape,
        output_shape=made,
        weights_shape=weights,
        filters=stage.filters,
        kernel_size=stage.kernel_size,
        strides=stage.strides,
        padding=stage.padding,
        parameters=prod(weights) + stage.filters,
        multiply_adds=prod(shape[:4]) * prod(weights),
        forward_check=forward_check(stage, shape, made),
        caffe=caffe_equivalent(stage, shape),
        torch=torch_equivalent(stage, shape),
        overlap=overlap,
        holes=any(0 in counts for counts in overlap),
        checkerboard=any(len(set(counts)) > 1 for counts in overlap),
        shift=triple(axis.shift for axis in stage.axes),
    )
