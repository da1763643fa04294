"""Composition of stages: a chain along an axis is again one line of integers.

Tracing output voxel `j` backwards through a stage gives input voxels `ceil((j + before - span + 1) / stride)` to
`floor((j + before) / stride)`. Nested floors and ceilings of this form merge into one, `floor((j + a) / S)` with the
product `S` of the strides, and so do the places of voxel centres; nothing has to be traced voxel by voxel.
"""

from collections.abc import Sequence

from models.stages.stage import Stage


def receptive_field(stages: Sequence[Stage]) -> tuple[tuple[int, int], ...]:
    """Receptive field of an output voxel, in latent voxels.

    Args:
        stages: From the latent to the output.

    Returns:
        Per axis (before, after): latent voxels that some output voxel depends on before and after its own. Its own is
        the latent voxel in whose place it lies, latent and output laid centre on centre.

    >>> clean, lopsided = Stage(1, (4, 4, 4), (2, 2, 2)), Stage(1, (3, 3, 3), (2, 2, 2))
    >>> receptive_field([clean])[0], receptive_field([lopsided])[0]
    ((1, 1), (1, 0))
    """
    return tuple(_sight(stages, axis) for axis in range(3))


def _sight(stages: Sequence[Stage], axis: int) -> tuple[int, int]:
    total, first, last, centre = 1, 0, 0, 0  # own = floor((2j - centre + total) / 2total)
    for stage in reversed(stages):
        along = stage.axes[axis]
        first += total * (along.crop[0] - along.span + 1)
        last += total * along.crop[0]
        centre += total * (along.tail - 1)
        total *= along.stride
    own = (total - centre) // 2
    # The largest floor((j + a) / S) - ceil((j + b) / S) over all j is floor((a - b) / S); likewise on the other side.
    return max(0, (own - first) // total), max(0, -((own - last) // total))


def accumulated_shift(stages: Sequence[Stage]) -> tuple[float, float, float]:
    """Shift of the image by a chain of equal taps, towards higher indices, in voxels of the last output.

    Dividing by the total stride gives it in voxels of the latent. Each stage's own shift, `Axis.shift`, is in voxels of
    its own output, which the strides after it make larger.

    >>> accumulated_shift([Stage(1, (3, 3, 3), (2, 2, 2)), Stage(1, (3, 3, 3), (1, 2, 2))])
    (0.5, 1.5, 1.5)
    """
    depth, height, width = (_drift(stages, axis) for axis in range(3))
    return depth, height, width


def _drift(stages: Sequence[Stage], axis: int) -> float:
    drift = 0.0
    for stage in stages:
        along = stage.axes[axis]
        drift = drift * along.stride + along.shift
    return drift
