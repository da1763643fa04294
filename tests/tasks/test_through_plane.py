"""The slice profile of a scan, found in its voxels."""

import numpy as np
import pytest

from configs.axes import FileShape, NetworkShape
from configs.degradation import AxisDegradation, Noise, thick_slices
from tasks.imaging.acquisition import default_acquisition
from tasks.imaging.degrade import degrade
from tasks.imaging.through_plane import through_plane
from tasks.training.anatomy import draw_tissues
from tasks.volume.grid import Grid
from tasks.volume.inspection import inspect_volume
from tasks.volume.nifti import write_volume

PROFILES = {
    "box": AxisDegradation(factor=4),
    "gaussian": AxisDegradation(factor=4, profile="gaussian"),
    "kspace": AxisDegradation(factor=4, profile="kspace"),
}


@pytest.fixture(scope="module")
def anatomy():
    return draw_tissues(np.random.default_rng(7), NetworkShape(144, 128, 112))


def thick(anatomy, axis, noise=0.0):
    recipe = thick_slices("thick", axis).model_copy(update={"noise": Noise(kind="rician", sigma=noise)})
    return degrade(anatomy, recipe, 1)


@pytest.mark.parametrize("noise", [0.0, 0.03])
@pytest.mark.parametrize("profile", PROFILES)
def test_it_is_found_with_and_without_noise(anatomy, profile, noise):
    found = through_plane(thick(anatomy, PROFILES[profile], noise), 4)
    assert found is not None
    assert found.profile == profile
    assert found.fwhm == pytest.approx(1.207 if profile == "kspace" else 1.0, rel=0.2)


def test_a_gap_does_not_show_but_its_width_is_within_the_uncertainty(anatomy):
    found = through_plane(thick(anatomy, AxisDegradation(factor=4, gap=0.25)), 4)
    assert found is not None
    assert abs(found.fwhm - 0.75) <= found.uncertainty


@pytest.mark.parametrize("shape", [(8, 64, 64), (30, 16, 64)])
def test_a_small_volume_shows_none(shape):
    assert through_plane(np.random.default_rng(0).random(shape, np.float32), 4) is None


def test_a_volume_without_contrast_shows_none():
    assert through_plane(np.ones((30, 64, 64), np.float32), 4) is None


@pytest.mark.parametrize("slices", [0, 1, 2])
def test_a_scan_of_thick_slices_is_assumed_to_have_it_along_any_axis(tmp_path, anatomy, slices):
    voxels = np.moveaxis(thick(anatomy, PROFILES["gaussian"]), 0, slices)
    spacing = np.insert(np.ones(2), slices, 4.0)
    path = tmp_path / "scan.nii.gz"
    write_volume(path, voxels, Grid(FileShape(*voxels.shape), np.diag([*spacing, 1.0])))
    extent = inspect_volume(path).extent
    model = thick_slices("model", AxisDegradation(factor=4))
    found = default_acquisition(model, extent.lowest, through=extent.through)
    assert found.profile == "gaussian"
    assert "FWHM 1 ± 0.15 slices" in found.source


def test_a_scan_of_equal_spacings_is_not_searched_for_it(tmp_path, anatomy):
    path = tmp_path / "scan.nii.gz"
    write_volume(path, anatomy[:40, :40, :40], Grid(FileShape(40, 40, 40), np.eye(4)))
    assert inspect_volume(path).extent.through is None
