import numpy as np
import pytest

from configs.axes import NetworkShape
from tasks.imaging.acquisition import zero_filling
from tasks.training.anatomy import draw_shapes, draw_tissues
from tasks.volume.inspection import find_spectra

IMAGED = pytest.mark.parametrize("kspace", [0.0, 1.0], ids=["by a blur", "by k-space"])
KINDS = pytest.mark.parametrize("draw", [draw_shapes, draw_tissues], ids=["shapes", "tissues"])
SHAPE = (24, 48, 40)


@KINDS
def test_anatomy_follows_its_seed(draw):
    one, again, other = (draw(np.random.default_rng(seed), SHAPE) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


@IMAGED
@KINDS
def test_anatomy_lies_on_the_intensity_scale(draw, kspace):
    for seed in range(6):
        voxels = draw(np.random.default_rng(seed), SHAPE, kspace)
        assert voxels.shape == SHAPE
        assert voxels.dtype == np.float32
        assert np.isfinite(voxels).all()
        assert voxels.min() >= 0
        assert voxels.max() < 2


@IMAGED
@KINDS
def test_anatomy_has_faces_sharper_than_the_template(draw, kspace):
    # The share of the largest steps between neighbours, against the spread of intensities.
    steps = []
    for seed in range(12):
        voxels = draw(np.random.default_rng(seed), SHAPE, kspace)
        if voxels.std() > 0.05:
            steps.append(np.quantile(np.abs(np.diff(voxels, axis=2)), 0.999) / voxels.std())
    assert np.median(steps) > 1


@pytest.mark.parametrize(("kspace", "ends"), [(0.0, False), (1.0, True)])
def test_what_k_space_has_imaged_ends_at_a_frequency_where_some_scanner_filled_with_zeros(kspace, ends):
    found: list[float] = []
    for seed in range(12):
        voxels = draw_shapes(np.random.default_rng(seed), NetworkShape(64, 64, 64), kspace)
        found += zero_filling(find_spectra(voxels, (1, 1, 1)))
    assert (max(found) > 1) == ends


def test_contrasts_differ_from_piece_to_piece():
    brightest = [draw_shapes(np.random.default_rng(seed), NetworkShape(*SHAPE)).mean() for seed in range(12)]
    assert np.ptp(brightest) > 0.3
