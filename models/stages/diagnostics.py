"""Diagnostics of a stage: problems that raise no error, and their remedies."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from configs.axes import AXES, total_stride, triple
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
    """Return the smallest clean kernel that blends neighbours: two taps or more reach every output voxel.

    Where that exceeds the largest kernel allowed, it is the stride itself, which is clean but blends nothing.

    >>> [clean_kernel(stride) for stride in (1, 2, 3, 4, 1000)]
    [3, 4, 9, 8, 1000]
    """
    blending = stride * (2 if stride % 2 == 0 else 3)
    return blending if blending <= LARGEST else stride


def remedy(stage: Stage) -> Stage:
    """Return the clean stage nearest to a stage: the same filters, strides and dilation."""
    clean = replace(stage, padding="same", output_padding=None)
    kernel = triple(axis.kernel_size if is_clean(axis) else clean_kernel(axis.stride) for axis in clean.axes)
    return replace(clean, kernel_size=kernel)


def warnings_about(stages: Sequence[Stage]) -> Iterator[str]:
    """Describe what goes wrong in a chain of stages, stage by stage and then for the whole."""
    for number, stage in enumerate(stages, start=1):
        found = [(name, _problems(axis)) for name, axis in zip(AXES, stage.axes, strict=True)]
        for problem in ("holes", "checkerboard", "shift"):
            affected = grouped((name, problems[problem]) for name, problems in found if problem in problems)
            if affected:
                yield f"Stage {number}, {problem}: {'; '.join(affected)}. Remedy: {_remedy_text(stage)}."
    if any(axis.shift for stage in stages[:-1] for axis in stage.axes):
        drift = accumulated_shift(stages)
        totals = total_stride(stage.strides for stage in stages)
        latent = [shift / total for shift, total in zip(drift, totals, strict=True)]
        yield (
            f"All stages, shift: {', '.join(AXES)} add up to {_signed(drift)} voxels of the last output,"
            f" which is {_signed(latent)} voxels of the latent. Remedy: those of the stages."
        )


def _problems(axis: Axis) -> dict[str, str]:
    """Describe what goes wrong along one axis, by the name of the problem."""
    taps = f"{shape_text(axis.overlap)} taps of kernel {axis.kernel_size} reach the phases of stride {axis.stride}"
    problems = {}
    if 0 in axis.overlap:
        problems["holes"] = f"{taps}, and where none does there is the bias and nothing else"
    elif len(set(axis.overlap)) > 1:
        problems["checkerboard"] = taps
    if axis.shift:
        problems["shift"] = f"equal taps move the image by {axis.shift:+g} voxel of the output"
    return problems


def _signed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:+g}" for value in values)


def _remedy_text(stage: Stage) -> str:
    clean = remedy(stage)
    same_padding = replace(clean, kernel_size=stage.kernel_size) == stage
    return f"kernel {by(clean.kernel_size)}" + ("" if same_padding else ", padding same and no output padding")
