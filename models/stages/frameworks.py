"""The same stage in Caffe and PyTorch: the pad and output padding that make the same operation, or why there is none.

Both crop the same number of voxels before and after what the taps reach: `(size - 1) * stride + span - 2 * pad`.
PyTorch then adds `output_padding` voxels after, fewer than the stride or the dilation. TensorFlow crops an odd voxel
after. The order of the taps is the same everywhere, only the layout of the weights differs:
`(in, out, depth, height, width)` there, `(depth, height, width, out, in)` in TensorFlow.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from configs.axes import AXES, TensorShape, Triple, triple
from models.stages.stage import Axis, Stage
from models.stages.wording import grouped


@dataclass(frozen=True)
class Elsewhere:
    """A stage as a layer of another framework.

    Args:
        pad: Voxels cropped on both sides, per axis.
        output_padding: Voxels added after, per axis; Caffe has none.
        output_shape: Shape that it makes with them, (batch, depth, height, width, channels).
        equivalent: Whether it is the same operation. If not, pad and output_padding are what the reason starts from.
        reason: Why it is not, and what to do; None if it is.
    """

    pad: Triple
    output_padding: Triple
    output_shape: TensorShape
    equivalent: bool
    reason: str | None


def caffe_equivalent(stage: Stage, input_shape: TensorShape) -> Elsewhere:
    """Describe a stage as a Caffe Deconvolution layer; arguments as for `torch_equivalent`."""
    return _elsewhere(stage, input_shape, (0, 0, 0), map(_caffe_obstacle, stage.axes))


def torch_equivalent(stage: Stage, input_shape: TensorShape) -> Elsewhere:
    """Describe a stage as a PyTorch ConvTranspose3d.

    Args:
        stage: The stage.
        input_shape: (batch, depth, height, width, channels).
    """
    added = triple(max(0, before - after) for before, after in (axis.crop for axis in stage.axes))
    return _elsewhere(stage, input_shape, added, map(_torch_obstacle, stage.axes))


def padded_size(axis: Axis, size: int, pad: int, output_padding: int = 0) -> int:
    """Output size along an axis under PyTorch's rule, and without output padding under Caffe's.

    >>> padded_size(Axis(kernel_size=3, stride=2), 16, pad=1)
    31
    """
    return (size - 1) * axis.stride + axis.span - 2 * pad + output_padding


def _elsewhere(stage: Stage, input_shape: TensorShape, added: Triple, obstacles: Iterable[str | None]) -> Elsewhere:
    pad = triple(axis.crop[0] for axis in stage.axes)
    sizes = triple(map(padded_size, stage.axes, input_shape[1:4], pad, added))
    found = grouped((axis, obstacle) for axis, obstacle in zip(AXES, obstacles, strict=True) if obstacle)
    output_shape = (input_shape[0], *sizes, stage.filters)
    return Elsewhere(pad, added, output_shape, equivalent=not found, reason="; ".join(found) or None)


def _torch_obstacle(axis: Axis) -> str | None:
    before, after = axis.crop
    if after <= before:
        return None  # the difference is the output padding
    if max(axis.stride, axis.dilation_rate) == 1:
        return _lopsided(axis)
    return f"{_lopsided(axis)}; pad {after} with output_padding 1 has the size but lies one voxel off"


def _caffe_obstacle(axis: Axis) -> str | None:
    before, after = axis.crop
    if after < before:
        return f"Caffe has no output padding; append {-after} voxel{'s' if after < -1 else ''} of bias"
    return f"{_lopsided(axis)}; pad {after} is one voxel short" if after > before else None


def _lopsided(axis: Axis) -> str:
    before, after = axis.crop
    return f"TensorFlow cuts {before} before and {after} after; use pad {before} and drop the last voxel"
