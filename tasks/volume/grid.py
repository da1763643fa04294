"""Grids: a grid of voxels in the world, finer and coarser grids over the same field of view, network axes.

Vocabulary: the *outer edges* of a grid are half a voxel beyond the centres of its first and last voxels; the *field of
view* is the box between them. Voxel `(i, j, k)` has its centre at `affine @ (i, j, k, 1)`, in RAS+ millimetres.
"""

from dataclasses import dataclass
from itertools import permutations, product
from math import prod
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from configs.axes import FileShape, NetworkShape, Triple, triple
from configs.errors import InputError

T = TypeVar("T")
Value = TypeVar("Value", bound=np.generic)
Three = tuple[float, float, float]
Side = tuple[int, int]  # start and stop along an axis
Shape = TypeVar("Shape", FileShape, NetworkShape)

MAX_AXIS_VOXELS = 1_000_000  # along an axis: more are a mistaken unit
MAX_GRID_VOXELS = 1_000_000_000_000  # four times a human brain at 0.02 mm
MAX_COORDINATE_MM = 1e9  # a thousand kilometres is as good as infinite
# Spacings closer than this are equal: such differences come from reconstruction, not from thick slices.
EQUAL_SPACING = 0.02
THICK = 1.5  # ratio of slice spacing to voxel spacing within the slices from which a scan is one of thick slices
LARGEST_VOXEL_TOLERANCE = 1e-6  # of the field of view


class GridError(InputError):
    """Voxels that cannot be placed in the world; `reason` is a clause without a full stop."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Cannot place a grid: {reason}.")
        self.reason = reason
        self.args = (reason,)  # by which it is pickled


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxels in the world.

    Args:
        shape: Voxels along the file axes (i, j, k).
        affine: 4x4, voxel index → RAS+ millimetres; kept as read-only float64.

    Raises:
        GridError: A size below 1, or an affine that is not 4x4, not finite or not invertible.
    """

    shape: FileShape
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        shape = tuple(int(size) for size in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise GridError(f"three sizes of at least 1 are needed, received {shape}")
        if affine.shape != (4, 4) or not (np.abs(affine) < MAX_COORDINATE_MM).all():
            raise GridError(f"the affine must be 4x4 and finite, received {affine.tolist()}")
        # The determinant of the directions, not of the affine: spacings of 1e-6 mm are odd but not flat.
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if not lengths.all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
            raise GridError(f"the affine is flat, its axes span no volume: {affine.tolist()}")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", FileShape(*shape))
        object.__setattr__(self, "affine", affine)

    @property
    def spacing(self) -> Three:
        """Millimetres per voxel along (i, j, k): the lengths of the affine's columns."""
        return triple(np.linalg.norm(self.affine[:3, :3], axis=0).tolist())

    @property
    def mib(self) -> float:
        """Size of one float32 volume on the grid, in MiB."""
        return prod(self.shape) * 4 / 2**20

    def world(self, voxels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Place voxel coordinates `[n, 3]` in the world: `[n, 3]` RAS+ millimetres."""
        placed: NDArray[np.float64] = np.asarray(voxels) @ self.affine[:3, :3].T + self.affine[:3, 3]
        return placed

    def corners(self) -> NDArray[np.float64]:
        """Return the eight corners of the field of view, `[8, 3]` in RAS+ millimetres, first axis slowest."""
        return self.world(np.array(list(product(*((-0.5, size - 0.5) for size in self.shape)))))


def covering_grid(grid: Grid, shape: FileShape) -> Grid:
    """Return the grid of another shape over the same field of view.

    With n voxels becoming N, `A' = A·diag(n/N)` and `t' = t + A·((n/N − 1)/2)`: the outer edges stay where they are.

    >>> covering_grid(Grid(FileShape(4, 4, 4), np.eye(4)), FileShape(8, 4, 2)).affine[:3, 3].tolist()
    [-0.25, 0.0, 0.5]
    """
    return Grid(shape, grid.affine @ covering_transform(grid.shape, shape))


def covering_transform(shape: FileShape, covering: FileShape) -> NDArray[np.float64]:
    """Return the 4x4 that takes voxel indices of the `covering` shape to indices of `shape`, same field of view."""
    step = np.divide(shape, covering)
    transform = np.diag([*step, 1.0])
    transform[:3, 3] = (step - 1) / 2
    return transform


def scaled_grid(grid: Grid, scale: Three) -> Grid:
    """Return the grid of `scaled_shape` over the same field of view.

    >>> scaled_grid(Grid(FileShape(5, 5, 5), np.eye(4)), (2, 1, 0.5)).shape
    FileShape(i=10, j=5, k=3)
    """
    return covering_grid(grid, scaled_shape(grid.shape, scale))


def scaled_shape(shape: Shape, scale: Three) -> Shape:
    """Scale `shape` by `scale`, rounded half up; an axis of one voxel keeps it.

    Args:
        shape: Voxels per axis.
        scale: Target voxels per voxel along the same axes; below 1 is coarser.

    Raises:
        InputError: A scale that is not a positive finite number, or asks for more voxels than any volume has, or for
            voxels larger than the field of view.

    >>> scaled_shape(FileShape(5, 7, 1), (0.5, 1.5, 0.25))
    FileShape(i=3, j=11, k=1)
    """
    if len(scale) != 3 or not np.isfinite(scale).all() or min(scale) <= 0:
        raise InputError(f"Cannot scale a grid: three positive numbers are needed, received {_numbers(scale)}.")
    wanted = [size * float(factor) if size > 1 else 1.0 for size, factor in zip(shape, scale, strict=True)]
    if min(wanted) < 1 - LARGEST_VOXEL_TOLERANCE:
        least = ",".join(f"{1 / size:.3g}" for size in shape)
        raise InputError(
            f"Cannot scale a grid of {'x'.join(map(str, shape))} voxels by {_numbers(scale)}: a voxel would be larger"
            " than the field of view.",
            f"Choose a scale of {least} or more, or a spacing within the field of view.",
        )
    if max(wanted) > MAX_AXIS_VOXELS or prod(wanted) > MAX_GRID_VOXELS:
        raise InputError(
            f"Cannot scale a grid: no axis may hold more than {MAX_AXIS_VOXELS} voxels and no grid more than "
            f"{MAX_GRID_VOXELS:.0e}, and a scale of {_numbers(scale)} asks for {_numbers(tuple(wanted))}.",
            "Choose a smaller scale or a wider spacing.",
        )
    # Rounded half up with a tolerance: a third of 9 voxels is 3 despite the last bit.
    return type(shape)(*(max(1, int(np.floor(size + 0.5 + 1e-9))) for size in wanted))


def spaced_grid(grid: Grid, spacing: Three) -> Grid:
    """Return the grid whose spacing is nearest to `spacing` (mm along i, j, k) over the same field of view.

    Raises:
        InputError: A spacing that is not a positive finite number.

    >>> spaced_grid(Grid(FileShape(10, 10, 10), np.diag([1, 1, 3, 1])), (1, 0.5, 1)).shape
    FileShape(i=10, j=20, k=30)
    """
    if len(spacing) != 3 or not np.isfinite(spacing).all() or min(spacing) <= 0:
        raise InputError(f"Cannot space a grid: three positive millimetres are needed, received {_numbers(spacing)}.")
    return scaled_grid(grid, triple(have / wanted for have, wanted in zip(grid.spacing, spacing, strict=True)))


def orientation(grid: Grid) -> tuple[Triple, tuple[bool, bool, bool]]:
    """Find which world axis each file axis follows most nearly.

    Of the six assignments the one with the largest sum of direction cosines wins, after the shear is taken out by the
    polar decomposition, so obliquity up to 45° never gives two file axes the same world axis.

    Returns:
        World axis (0 = left to right, 1 = posterior to anterior, 2 = inferior to superior) of i, j and k; and whether
        the file axis runs against it.
    """
    left, _, right = np.linalg.svd(grid.affine[:3, :3] / grid.spacing)
    cosines = left @ right
    best = max(permutations(range(3)), key=lambda worlds: sum(abs(cosines[w, a]) for a, w in enumerate(worlds)))
    return triple(best), triple(bool(cosines[world, axis] < 0) for axis, world in enumerate(best))


def oblique_degrees(grid: Grid) -> float:
    """Return the largest angle between a file axis and its world axis."""
    worlds, _ = orientation(grid)
    cosines = [abs(grid.affine[world, axis]) / grid.spacing[axis] for axis, world in enumerate(worlds)]
    return float(np.degrees(np.arccos(min(1.0, *cosines))))


def axis_codes(grid: Grid) -> str:
    """Name the directions in which i, j and k grow, such as `RAS` or `LPI`.

    >>> axis_codes(Grid(FileShape(2, 2, 2), np.diag([-1, 1, 1, 1])))
    'LAS'
    """
    worlds, against = orientation(grid)
    return "".join("RASLPI"[world + 3 * back] for world, back in zip(worlds, against, strict=True))


def slice_axis(grid: Grid) -> int:
    """Return the file axis across the slices: the largest spacing; among equals the one nearest to inferior-superior.

    A scan of equal spacings has the same slice axis in the world in whatever axis order it is stored.

    >>> slice_axis(Grid(FileShape(9, 9, 9), np.diag([1, 3, 1, 1]))), slice_axis(Grid(FileShape(9, 9, 9), np.eye(4)))
    (1, 2)
    """
    widest = max(grid.spacing)
    worlds, _ = orientation(grid)
    return max((a for a in range(3) if grid.spacing[a] > widest * (1 - EQUAL_SPACING)), key=lambda axis: worlds[axis])


@dataclass(frozen=True)
class NetworkAxes:
    """The one place that converts between file axes (i, j, k) and network axes (depth, height, width).

    Depth is the slice axis; height and width are the others, in descending world order (superior, anterior, right), and
    every axis runs towards superior, anterior or right. So one subject gives one network input, in any axis order
    and direction its file stores it; and for the common order RAS the network's array is the file's, without a copy.

    Args:
        order: The file axis of depth, height and width.
        flipped: Whether depth, height and width run against their file axis.
    """

    order: Triple
    flipped: tuple[bool, bool, bool]

    def to_network(self, voxels: NDArray[Value]) -> NDArray[Value]:
        """View `[i, j, k]` voxels as `[depth, height, width]`."""
        return voxels.transpose(self.order)[self._directions()]

    def to_file(self, voxels: NDArray[Value]) -> NDArray[Value]:
        """View `[depth, height, width]` voxels as `[i, j, k]`."""
        return voxels[self._directions()].transpose(np.argsort(self.order))

    def network_shape(self, shape: FileShape) -> NetworkShape:
        """Reorder a shape along file axes to network axes."""
        return NetworkShape(*self.of_file(shape))

    def file_shape(self, shape: NetworkShape) -> FileShape:
        """Reorder a shape along network axes to file axes."""
        return FileShape(*self.of_network(shape))

    def of_file(self, per_axis: tuple[T, T, T]) -> tuple[T, T, T]:
        """Reorder one value per file axis (a scale, a spacing) to network axes."""
        return triple(per_axis[axis] for axis in self.order)

    def of_network(self, per_axis: tuple[T, T, T]) -> tuple[T, T, T]:
        """Reorder one value per network axis to file axes."""
        return triple(per_axis[self.order.index(axis)] for axis in range(3))

    @property
    def written_axis(self) -> int | None:
        """The network axis that runs along k, plane by plane as files are written; None if it runs against it."""
        axis = self.order.index(2)
        return None if self.flipped[axis] else axis

    def planes(self, shape: FileShape, start: int, stop: int) -> tuple[Side, Side, Side]:
        """Return what the planes `start..stop` along k of a grid are on network axes: (start, stop) of each."""
        sides = zip(self.order, self.flipped, strict=True)
        return triple(
            (0, shape[axis]) if axis != 2 else (shape[2] - stop, shape[2] - start) if flipped else (start, stop)
            for axis, flipped in sides
        )

    def _directions(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if back else 1) for back in self.flipped)


def network_axes(grid: Grid, depth: int | None = None) -> NetworkAxes:
    """Find the network axes of a grid.

    Args:
        grid: Any grid; a target grid has the axes of its input only if `depth` is given.
        depth: The file axis across the slices; without it `slice_axis(grid)`.
    """
    worlds, against = orientation(grid)
    first = slice_axis(grid) if depth is None else depth
    order = triple([first, *sorted({0, 1, 2} - {first}, key=lambda axis: -worlds[axis])])
    return NetworkAxes(order, triple(against[axis] for axis in order))


def slice_ratio(grid: Grid) -> float:
    """Return the spacing of the slices over that of the voxels within them; above `THICK` they are thick."""
    through, *within = network_axes(grid).of_file(grid.spacing)
    return through / max(within)


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


def _numbers(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
