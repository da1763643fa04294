"""Grids: the field of view stays, axes are found, network axes come back."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from configs.axes import FileShape
from configs.errors import InputError
from tasks.volume.grid import (
    Grid,
    axis_codes,
    covering_grid,
    network_axes,
    orientation,
    scaled_grid,
    slice_axis,
    spaced_grid,
)

# A single voxel, or enough that no scale or spacing below asks for voxels larger than the field of view.
sizes = st.tuples(*[st.just(1) | st.integers(30, 400)] * 3)
factors = st.tuples(*[st.floats(0.1, 9)] * 3)


@st.composite
def grids(draw):
    """Any rotation, spacing, handedness, slight shear and origin."""
    rotation = Rotation.from_euler("xyz", draw(st.tuples(*[st.floats(-180, 180)] * 3)), degrees=True).as_matrix()
    spacing = np.diag(draw(st.tuples(*[st.floats(0.2, 8)] * 3)))
    shear = np.eye(3) + np.triu(np.full((3, 3), draw(st.floats(-0.4, 0.4))), 1)
    affine = np.eye(4)
    affine[:3, :3] = rotation @ shear @ spacing @ np.diag([draw(st.sampled_from([-1, 1])), 1, 1])
    affine[:3, 3] = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    return Grid(draw(sizes), affine)


@given(grids(), factors)
def test_scaling_keeps_the_field_of_view(grid, scale):
    scaled = scaled_grid(grid, scale)
    np.testing.assert_allclose(scaled.corners(), grid.corners(), atol=1e-9 * max(grid.shape))
    for size, wanted, factor in zip(grid.shape, scaled.shape, scale, strict=True):
        assert abs((size * factor if size > 1 else 1) - wanted) <= 0.5 + 1e-6


@given(grids(), st.tuples(*[st.floats(0.3, 6)] * 3))
def test_spacing_comes_within_half_a_voxel(grid, spacing):
    spaced = spaced_grid(grid, spacing)
    np.testing.assert_allclose(spaced.corners(), grid.corners(), atol=1e-6)
    length = np.multiply(grid.shape, grid.spacing)
    assert all(
        n == m == 1 or abs(n - full / want) <= 0.5 + 1e-6
        for n, m, full, want in zip(spaced.shape, grid.shape, length, spacing, strict=True)
    )


def test_an_axis_of_one_voxel_keeps_it():
    grid = Grid(FileShape(9, 1, 8), np.diag([1, 5, 1, 1.0]))
    assert scaled_grid(grid, (2, 2, 2)).shape == spaced_grid(grid, (0.5, 0.1, 0.5)).shape == (18, 1, 16)
    assert scaled_grid(grid, (1, 1e-3, 1)).shape == grid.shape


@pytest.mark.parametrize("scale", [(1e-9, 1, 1), (1, 1, 0.12)])
def test_a_voxel_larger_than_the_field_of_view_is_refused(scale):
    grid = Grid(FileShape(9, 1, 8), np.diag([1, 5, 1, 1.0]))
    with pytest.raises(InputError, match=r"larger than the field of view. Choose a scale of 0.111,1,0.125 or more"):
        scaled_grid(grid, scale)
    assert scaled_grid(grid, (1 / 9, 1, 1 / 8)).shape == (1, 1, 1)


@given(grids(), sizes)
def test_there_and_back_is_the_same_grid(grid, shape):
    back = covering_grid(covering_grid(grid, shape), grid.shape)
    np.testing.assert_allclose(back.affine, grid.affine, atol=1e-9)


@given(grids(), st.integers(0, 2))
def test_network_axes_come_back(grid, depth):
    axes = network_axes(grid, depth)
    voxels = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
    there = axes.to_network(voxels)
    assert there.shape == axes.of_file(voxels.shape)
    assert there.shape[0] == voxels.shape[depth]
    assert axes.of_network(there.shape) == voxels.shape
    np.testing.assert_array_equal(axes.to_file(there), voxels)


@given(grids())
def test_files_are_written_along_a_network_axis_or_against_it(grid):
    axes = network_axes(grid)
    first = axes.planes(grid.shape, 0, 1)
    if axes.written_axis is None:
        axis = axes.order.index(2)
        assert first[axis] == (grid.shape[2] - 1, grid.shape[2])
        assert axes.flipped[axis]
    else:
        assert axes.order[axes.written_axis] == 2
        assert first[axes.written_axis] == (0, 1)
        assert not axes.flipped[axes.written_axis]


def stored(order, flips, affine=None, shape=(4, 5, 6)):
    """One RAS image stored in another axis order and direction: (voxels, grid)."""
    voxels = np.random.default_rng(0).random(shape).astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine
    change = np.zeros((4, 4))
    for axis, (world, back) in enumerate(zip(order, flips, strict=True)):
        change[world, axis] = -1 if back else 1
        change[world, 3] = shape[world] - 1 if back else change[world, 3]
    change[3, 3] = 1
    reoriented = voxels.transpose(order)[tuple(slice(None, None, -1 if back else 1) for back in flips)]
    return reoriented, Grid(reoriented.shape, affine @ change)


@pytest.mark.parametrize("spacing", [(2, 2, 2), (1, 1, 3), (1, 4, 1), (5, 1, 1)])
def test_one_head_gives_one_network_input_in_all_48_storages(spacing):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (8, -6, 5), degrees=True).as_matrix() @ np.diag(spacing)
    expected = None
    for order, flips in product(permutations(range(3)), product([False, True], repeat=3)):
        voxels, grid = stored(order, flips, affine)
        seen = network_axes(grid).to_network(voxels)
        expected = seen if expected is None else expected
        np.testing.assert_array_equal(seen, expected)
        assert axis_codes(grid) == "".join("RASLPI"[w + 3 * b] for w, b in zip(order, flips, strict=True))


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [((1, 1, 1), 2), ((1, 1, 3), 2), ((3, 1, 1), 0), ((1, 3, 1), 1), ((1.001, 1, 1), 2), ((3, 3, 1), 1)],
)
def test_slice_axis_is_the_largest_spacing_and_among_equals_nearest_to_head_foot(spacing, expected):
    assert slice_axis(Grid(FileShape(3, 3, 3), np.diag([*spacing, 1.0]))) == expected


@given(grids())
def test_orientation_gives_each_file_axis_its_own_world_axis(grid):
    worlds, _ = orientation(grid)
    assert sorted(worlds) == [0, 1, 2]


@pytest.mark.parametrize(
    ("shape", "affine"),
    [
        ((0, 3, 3), np.eye(4)),
        ((3, 3), np.eye(4)),
        ((3, 3, 3), np.eye(3)),
        ((3, 3, 3), np.diag([1, 1, np.nan, 1])),
        ((3, 3, 3), np.diag([1, 1, 0, 1])),
        ((3, 3, 3), np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])),
    ],
)
def test_a_grid_that_cannot_be_is_refused(shape, affine):
    with pytest.raises(InputError, match="Cannot place a grid"):
        Grid(shape, affine)


@pytest.mark.parametrize("values", [(0, 1, 1), (-1, 1, 1), (np.nan, 1, 1), (np.inf, 1, 1), (1, 1)])
def test_scales_and_spacings_are_positive_numbers(values):
    grid = Grid(FileShape(3, 3, 3), np.eye(4))
    with pytest.raises(InputError, match="three positive"):
        scaled_grid(grid, values)
    with pytest.raises(InputError, match="three positive"):
        spaced_grid(grid, values)


def test_a_grid_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        Grid(FileShape(3, 3, 3), np.eye(4)).affine[0, 0] = 2
