"""The target grid that was asked for: by scale, by spacing, or by what the model was trained for."""

from configs.errors import InputError
from tasks.volume.grid import Grid, network_axes, scaled_grid, spaced_grid

Three = tuple[float, float, float]


def target_grid(
    grid: Grid,
    scale: Three | None = None,
    spacing: Three | None = None,
    trained_for: Three = (1.0, 1.0, 1.0),
    depth: int | None = None,
) -> Grid:
    """Return the grid of the output, over the field of view of the input.

    Args:
        grid: Of the input.
        scale: Target voxels per voxel along (i, j, k).
        spacing: Wanted mm along (i, j, k).
        trained_for: Target voxels per voxel along (depth, height, width), used where neither is given.
        depth: The file axis across the slices; without it the largest spacing.

    Raises:
        InputError: Both scale and spacing are given.
    """
    if scale is not None and spacing is not None:
        raise InputError(
            "Cannot choose the target grid: scale and spacing are mutually exclusive.", "Give one of them."
        )
    if spacing is not None:
        return spaced_grid(grid, spacing)
    return scaled_grid(grid, scale or network_axes(grid, depth).of_network(trained_for))
