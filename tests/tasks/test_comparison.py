"""Parts of a volume, degraded again, that the workers make: their sum, their bits, their size."""

from itertools import pairwise, product

import numpy as np
import pytest

from configs.axes import NetworkShape, triple
from configs.degradation import AxisDegradation, Degradation
from tasks.imaging.consistency import axis_matrices
from tasks.imaging.degrade import coarse_shape, degrade
from tasks.imaging.separable import along
from tasks.sharding.comparison import Comparison, footprint
from tasks.volume.grid import NetworkAxes

SHAPE = NetworkShape(40, 36, 42)
PLAIN = AxisDegradation(factor=2)
RECIPES = {
    "mean": Degradation(name="mean", depth=PLAIN, height=PLAIN, width=PLAIN),
    "blur along two axes": Degradation(
        name="blur", depth=AxisDegradation(factor=2, blur_fwhm=2), width=AxisDegradation(factor=3, blur_fwhm=1)
    ),
    "k-space": Degradation(
        name="kspace",
        depth=AxisDegradation(factor=2, profile="kspace"),
        height=AxisDegradation(factor=2, profile="kspace"),
        width=AxisDegradation(factor=2, profile="kspace"),
    ),
    "gaps": Degradation(name="gaps", depth=AxisDegradation(factor=8, profile="box", gap=0.5), height=PLAIN),
    "nothing": Degradation(name="nothing"),
}
CUTS = {
    "whole": ((0, 40), (0, 36), (0, 42)),
    "slabs": ((0, 40), (0, 3, 8, 24, 36), (0, 42)),
    "boxes": ((0, 17, 40), (0, 20, 36), (0, 1, 30, 42)),
    "thin boxes": ((0, 2, 4, 40), (0, 2, 36), (0, 2, 42)),
}
AXES = [NetworkAxes((2, 1, 0), (False, False, False)), NetworkAxes((2, 0, 1), (True, False, True))]


def boxes_of(cuts):
    return [triple(sides) for sides in product(*map(pairwise, cuts))]


def voxels(shape=SHAPE):
    return np.random.default_rng(5).normal(100, 30, shape).astype(np.float32)


def cores(fine, cuts):
    return [(box, fine[tuple(slice(*side) for side in box)]) for box in boxes_of(CUTS[cuts])]


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("axes", AXES, ids=["as it is", "turned"])
def test_parts_add_up_to_the_volume_degraded_again(recipe, cuts, axes):
    fine = voxels()
    again = np.zeros(coarse_shape(SHAPE, recipe), np.float32)
    for box, core in cores(fine, cuts):
        found = footprint(box, SHAPE, recipe)
        part = Comparison(recipe, axes).part(core, box, SHAPE)
        assert part.shape == found.shape
        assert part.flags.c_contiguous
        again[found.window] += found.spread(part)
    np.testing.assert_allclose(again, degrade(fine, recipe), atol=2e-4)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_bits_are_those_of_products_one_after_another_in_the_layout_of_the_file(recipe, cuts):
    for axes, (box, core) in product(AXES, cores(voxels(), cuts)):
        found = footprint(box, SHAPE, recipe)
        expected = axes.to_network(np.asfortranarray(axes.to_file(core)))
        matrices = {
            axis: matrix[found.window[axis], slice(*box[axis])]
            for axis, matrix in enumerate(axis_matrices(SHAPE, recipe))
            if matrix is not None
        }
        for axis in sorted(matrices, key=lambda axis: matrices[axis].shape[0] / matrices[axis].shape[1]):
            expected = along(axis, matrices[axis], expected)
        np.testing.assert_array_equal(found.spread(Comparison(recipe, axes).part(core, box, SHAPE)), expected)


def test_a_thin_slab_whose_scan_was_cut_in_k_space_has_a_small_part():
    size = NetworkShape(320, 32, 32)
    slab = footprint(((16, 32), (0, 32), (0, 32)), size, RECIPES["k-space"])
    assert slab.window == (slice(0, 160), slice(0, 16), slice(0, 16))  # each of its planes touches the whole axis
    assert np.prod(slab.shape) == 16 * 16 * 16
    assert [axis for axis, _ in slab.growing] == [0]
