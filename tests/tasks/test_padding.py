"""Padding: recognised by its value and its edge, and filled from the voxels next to it."""

import numpy as np
import pytest
from scipy import ndimage

from tasks.volume.padding import fill, find_padding

SHAPE = (20, 30, 30)


def scanned(padding, outside="nothing"):
    """A cylinder of tissue, `padding` around it."""
    j, k = np.indices(SHAPE[1:]) - 14.5
    voxels = np.random.default_rng(0).normal(40, 15, SHAPE).astype(np.float32)
    voxels[:, np.hypot(j, k) > 14] = padding
    return voxels


@pytest.mark.parametrize("value", [-1024, -3024, -32768, np.nan, np.inf])
def test_padding_is_found(value):
    voxels = scanned(value)
    (found,) = find_padding(voxels)
    np.testing.assert_array_equal(found.mask, voxels == value if np.isfinite(value) else ~np.isfinite(voxels))
    assert found.value == value or np.isnan(found.value)


def test_nan_and_a_value_may_both_be_padding():
    voxels = scanned(-3024)
    voxels[:, 15, 15] = np.nan
    nothing, outside = find_padding(voxels)
    assert np.isnan(nothing.value)
    assert (outside.value, nothing.mask.sum()) == (-3024, SHAPE[0])


def test_air_that_is_cut_off_at_a_padding_value_is_no_padding():
    air = np.random.default_rng(0).normal(-1015, 10, SHAPE).astype(np.float32)
    assert not find_padding(np.maximum(air, -1024))


def test_air_around_a_blurred_edge_is_no_padding():
    voxels = np.where(np.isnan(scanned(np.nan)), -1024, scanned(np.nan))
    blurred = ndimage.gaussian_filter(voxels, 1)
    assert (blurred == -1024).any()
    assert not find_padding(blurred)


@pytest.mark.parametrize("value", [0, -1000, -500])
def test_other_values_are_no_padding(value):
    assert not find_padding(scanned(value))


def test_padding_is_filled_from_the_nearest_voxels():
    voxels = np.broadcast_to(np.arange(30, dtype=np.float32), SHAPE).copy()
    mask = np.zeros(SHAPE, bool)
    mask[:, :, :10] = True
    mask[5, 7, 20] = True
    filled = fill(np.where(mask, np.float32(np.nan), voxels), mask)
    assert (filled[:, :, :10] == 10).all()
    assert filled[5, 7, 20] in {19, 20, 21}
    np.testing.assert_array_equal(filled[~mask], voxels[~mask])
    assert not fill(np.full((2, 2, 2), np.nan, np.float32), np.ones((2, 2, 2), bool)).any()
