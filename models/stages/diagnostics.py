"""Diagnostics of a stage: problems that raise no error, and their remedies."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from configs.axes import AXES, total_stride
from models.stages.stage import LARGEST, Axis, Stage, accumulated_shift
from models.stages.wording import by, grouped, shape_text


def is_clean(axis: Axis) -> bool:
    """True if a stage reaches every voxel along an axis equally often and leaves the image in its place.

    With padding "same" and no output padding: the stride divides the kernel, and kernel minus stride is even.
    """
    return len(set(axis.overlap)) == 1 and axis.shift == 0


def blocks(axis: Axis) -> bool:
    """True if no output voxel along an axis blends two input voxels, so that the image is made of blocks."""
    return axis.span <= axis.stride > 1


def clean_kernel(stride: int) -> int:
    """Use the smallest clean kernel that blends neighbours: two taps or more reach every output voxel.

    Where that is larger than a kernel may be, it is the stride itself, which is clean but blends nothing.

    >>> [clean_kernel(stride) for stride in (1, 2, 3, 4, 1000)]
    [3, 4, 9, 8, 1000]
    """
    blending = stride * (2 if stride % 2 == 0 else 3)
    return blending if blending <= LARGEST else stride


def remedy(stage: Stage) -> Stage:
    """Give the clean stage nearest to a stage: the same filters, strides and dilation."""
    clean = replace(stage, padding="same", output_padding=None)
    depth, height, width = (axis.kernel_size if is_clean(axis) else clean_kernel(axis.stride) for axis in clean.axes)
    return replace(clean, kernel_size=(depth, height, width))


def warnings_about(stages: Sequence[Stage]) -> Iterator[str]:
    """Say what goes wrong in a chain of stages, stage by stage and then for the whole."""
    for number, stage in enumerate(stages, start=1):
        named = list(zip(AXES, stage.axes, strict=True))
        for problem, remark in (("holes", _holes), ("checkerboard", _checkerboard), ("shift", _shift)):
            found = grouped((name, text) for name, axis in named if (text := remark(axis)))
            if found:
                yield f"Stage {number}, {problem}: {'; '.join(found)}. Remedy: {_prescription(stage)}."
    if any(axis.shift for stage in stages[:-1] for axis in stage.axes):
        drift = accumulated_shift(stages)
        totals = total_stride(stage.strides for stage in stages)
        latent = [moved / total for moved, total in zip(drift, totals, strict=True)]
        yield (
            f"All stages, shift: {', '.join(AXES)} add up to {_signed(drift)} voxels of the last output,"
            f" which is {_signed(latent)} voxels of the latent. Remedy: those of the stages."
        )


def _holes(axis: Axis) -> str:
    if 0 not in axis.overlap:
        return ""
    return f"{_taps(axis)}, and where none does there is the bias and nothing else"


def _checkerboard(axis: Axis) -> str:
    return "" if 0 in axis.overlap or len(set(axis.overlap)) == 1 else _taps(axis)


def _taps(axis: Axis) -> str:
    return f"{shape_text(axis.overlap)} taps of kernel {axis.kernel_size} reach the phases of stride {axis.stride}"


def _shift(axis: Axis) -> str:
    return f"equal taps move the image by {axis.shift:+g} voxel of the output" if axis.shift else ""


def _signed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:+g}" for value in values)


def _prescription(stage: Stage) -> str:
    better = remedy(stage)
    kept = replace(better, kernel_size=stage.kernel_size) == stage
    return f"kernel {by(better.kernel_size)}" + ("" if kept else ", padding same and no output padding")
