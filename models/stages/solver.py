"""Find the stages that lead from a latent to a wanted output, cleanest first.

Each stage multiplies the size of an axis by its stride, so the growth of an axis, output over latent, is split into one
stride a stage. The axes are split independently and only the best splits of each are combined, which bounds the work.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from math import prod

from configs.axes import AXES, TensorShape, Triple, triple
from configs.errors import ShapeError
from models.stages.diagnostics import blocks, clean_kernel
from models.stages.forward_check import check_shape
from models.stages.stage import Stage, accumulated_shift
from models.stages.wording import grouped, options, shape_text

MAX_STRIDE = 16  # of one stage: its clean kernel has 32 taps along the axis
MAX_GROWTH = 4096
MAX_STAGES = 8
MAX_SPLITS = 4  # of each axis, which are combined
MAX_SOLUTIONS = 8

Split = tuple[int, ...]
KERNELS: tuple[Callable[[int], int], ...] = (
    clean_kernel,
    # As many taps as the stride: clean and cheap, but no output voxel blends two neighbours.
    lambda stride: stride if stride > 1 else 3,
    lambda _: 3,
)


def solve(
    latent_shape: Sequence[int],
    target_shape: Sequence[int],
    stage_count: int | None = None,
    channels: Sequence[int] | None = None,
) -> list[tuple[Stage, ...]]:
    """Find stages from a latent to a wanted output.

    Args:
        latent_shape: (batch, depth, height, width, channels).
        target_shape: Likewise.
        stage_count: How many stages; None for any number in which each stage grows an axis.
        channels: Filters of the stages, the last one those of the target; None halves them stage by stage.

    Returns:
        At most 8 chains of stages, ranked: fewest holes, least uneven overlap, least shift, then the most balanced
        growth (the least sum of squared strides), then blending neighbours. All have padding "same" and no output
        padding.

    Raises:
        ShapeError: Where there is none: it names the axis that forbids it and the nearest shapes that can be reached.

    >>> best = solve((2, 2, 7, 7, 64), (2, 16, 112, 112, 1), stage_count=3)[0]
    >>> [(stage.filters, stage.kernel_size, stage.strides) for stage in best]
    [(32, (4, 4, 4), (2, 2, 2)), (16, (4, 4, 4), (2, 2, 2)), (1, (4, 8, 8), (2, 4, 4))]
    """
    latent, target = check_shape(latent_shape, "latent"), check_shape(target_shape, "target")
    if channels is not None:
        _check_channels(channels, target, stage_count)
        stage_count = len(channels)
    if stage_count is not None and not 1 <= stage_count <= MAX_STAGES:
        raise ShapeError(f"The number of stages is 1 to {MAX_STAGES}. Received {stage_count}.")
    _check_reachable(latent, target, stage_count)
    growths = [wanted // size for size, wanted in zip(latent[1:4], target[1:4], strict=True)]
    found: dict[tuple[Stage, ...], None] = {}
    for count in [stage_count] if stage_count else range(1, MAX_STAGES + 1):
        filters = channels or _halved(latent[4], target[4], count)
        for plan, kernel in product(_plans(growths, count), KERNELS):
            if stage_count is None and count > 1 and (1, 1, 1) in plan:
                continue
            stages = (
                Stage(channels_out, triple(map(kernel, strides)), strides)
                for channels_out, strides in zip(filters, plan, strict=True)
            )
            found[tuple(stages)] = None
    return sorted(found, key=lambda stages: rank(stages, latent[4]))[:MAX_SOLUTIONS]


def rank(stages: Sequence[Stage], latent_channels: int) -> tuple[float, ...]:
    """Return the sort key of a solution, the best first."""
    axes = [axis for stage in stages for axis in stage.axes]
    inputs = [latent_channels, *(stage.filters for stage in stages)]
    return (
        sum(0 in axis.overlap for axis in axes),
        sum(len(set(axis.overlap)) > 1 for axis in axes),
        sum(map(abs, accumulated_shift(stages))),
        sum(axis.stride**2 for axis in axes),
        sum(map(blocks, axes)),
        sum(prod(stage.weights_shape(channels)) for stage, channels in zip(stages, inputs, strict=False)),
    )


def _halved(channels: int, last: int, count: int) -> list[int]:
    """Return the filters of `count` stages: halved from the latent's channels, not below the last ones.

    >>> _halved(64, 1, 4), _halved(8, 16, 2)
    ([32, 16, 8, 1], [8, 16])
    """
    return [max(channels >> number, min(channels, last)) for number in range(1, count)] + [last]


def _plans(growths: Sequence[int], count: int) -> list[tuple[Triple, ...]]:
    """Combine the best splits of the axes to strides of stages; equal growths in the plane are split alike."""
    depths, heights, widths = (_splits(growth, count)[:MAX_SPLITS] for growth in growths)
    planes = zip(heights, widths, strict=True) if growths[1] == growths[2] else product(heights, widths)
    return [tuple(zip(depth, *plane, strict=True)) for depth, plane in product(depths, planes)]


def _splits(growth: int, count: int) -> list[Split]:
    """Split a growth into `count` strides, the most balanced first."""
    found = sorted(_factors(growth, count, MAX_STRIDE), key=lambda factors: sum(f * f for f in factors))
    # Large strides come late, where channels are few, and strides of 1 at the end.
    return [tuple(sorted(factors, key=lambda stride: (stride == 1, stride))) for factors in found]


@cache
def _factors(growth: int, count: int, largest: int) -> tuple[Split, ...]:
    """Write a growth as a product of `count` descending numbers up to `largest`, in every possible way."""
    if count == 0:
        return ((),) if growth == 1 else ()
    return tuple(
        (factor, *rest)
        for factor in range(min(growth, largest), 0, -1)
        if growth % factor == 0
        for rest in _factors(growth // factor, count - 1, factor)
    )


def _check_channels(channels: Sequence[int], target: TensorShape, stage_count: int | None) -> None:
    received = f"Received channels {','.join(map(str, channels))} for {shape_text(target)}"
    if stage_count not in {None, len(channels)}:
        raise ShapeError(f"Each stage has its number of channels. {received} in {stage_count} stages.")
    if not channels or min(channels) < 1 or channels[-1] != target[4]:
        raise ShapeError(f"The channels of the stages are 1 or more and end with the target's {target[4]}. {received}.")


def _check_reachable(latent: TensorShape, target: TensorShape, stage_count: int | None) -> None:
    obstacles, below, above = [], list(target), list(target)
    if latent[0] != target[0]:
        obstacles.append(("batch", f"it stays {latent[0]}"))
        below[0] = above[0] = latent[0]
    for i, name in enumerate(AXES, start=1):
        obstacle = _obstacle(latent[i], target[i], stage_count)
        if obstacle:
            near = _nearest(latent[i], target[i], stage_count)
            obstacles.append((name, f"{obstacle}; {options(near)} would do"))
            below[i], above[i] = near[0], near[-1]
    if obstacles:
        shapes = " or ".join(dict.fromkeys(map(shape_text, (below, above))))
        raise ShapeError(
            "No stages with padding same and no output padding lead from"
            f" {shape_text(latent)} to {shape_text(target)}: {'; '.join(grouped(obstacles))}."
            f" Nearest shapes that can be reached: {shapes}.",
        )


def _obstacle(size: int, wanted: int, stage_count: int | None) -> str | None:
    if wanted < size:
        return f"a transposed convolution does not shrink, {wanted} is below {size}"
    if wanted % size:
        return f"each stage multiplies the size by its stride, and {wanted} is no whole multiple of {size}"
    growth = wanted // size
    if growth > MAX_GROWTH:
        return f"growth {growth} is above {MAX_GROWTH}"
    if not _factors(growth, stage_count or MAX_STAGES, MAX_STRIDE):
        count = stage_count or f"up to {MAX_STAGES}"
        return f"growth {growth} cannot be split into strides of 1 to {MAX_STRIDE} in {count} stages"
    return None


def _nearest(size: int, wanted: int, stage_count: int | None) -> list[int]:
    """Find the sizes nearest to the wanted one that can be reached, below and above."""
    growth = min(wanted // size, MAX_GROWTH)
    sides = (range(growth, 0, -1), range(growth + 1, MAX_GROWTH + 1))
    reached = ((g * size for g in side if _obstacle(size, g * size, stage_count) is None) for side in sides)
    return [first for side in reached if (first := next(side, None))]
