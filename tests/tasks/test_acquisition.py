"""The acquisition that is assumed of a scan, and the degradation that follows."""

import numpy as np
import pytest

from configs.axes import FileShape, NetworkShape
from configs.degradation import AxisDegradation, Noise, isotropic, named_degradation
from tasks.imaging.acquisition import Acquisition, ScannerRecord, default_acquisition, zero_filling
from tasks.imaging.degrade import degrade
from tasks.imaging.through_plane import ThroughPlane
from tasks.training.anatomy import draw_shapes
from tasks.volume.grid import Grid
from tasks.volume.inspection import inspect_volume
from tasks.volume.nifti import write_volume

FINE, COARSE = NetworkShape(64, 60, 50), NetworkShape(16, 30, 50)


@pytest.mark.parametrize("profile", ["kspace", "box", "gaussian"])
def test_each_axis_is_degraded_by_the_scale_between_the_shapes(profile):
    found = Acquisition(profile, (0.5, 0.0, 1.0)).degradation(FINE, COARSE)
    assert found.depth == AxisDegradation(factor=4, profile=profile, blur_fwhm=2)
    assert found.height == AxisDegradation(factor=2, profile=profile)
    assert found.width == AxisDegradation()


def test_an_axis_that_was_zero_filled_was_acquired_in_k_space():
    found = Acquisition("box", zero_filling=(1.5, 1.0, 1.5)).degradation(FINE, COARSE)
    assert found.depth == AxisDegradation(factor=4, profile="kspace", zero_filling=1.5)
    assert found.height == AxisDegradation(factor=2)
    assert found.width == AxisDegradation()


@pytest.fixture(scope="module")
def anatomy():
    return draw_shapes(np.random.default_rng(3), NetworkShape(144, 120, 96))


def assumed_of(folder, coarse):
    """The acquisition that is assumed of a scan on disk, as integers."""
    path = folder / "scan.nii.gz"
    write_volume(path, 1000 * coarse, Grid(FileShape(*coarse.shape), np.eye(4)), dtype="int16")
    return default_acquisition(named_degradation("kspace2x"), 0.0, inspect_volume(path).extent.spectra)


NOISE = pytest.mark.parametrize("noise", [Noise(), Noise(kind="rician", sigma=0.02), Noise(kind="rician", sigma=0.05)])


def coarse_of(anatomy, axis, noise):
    return degrade(anatomy, isotropic("scan", axis).model_copy(update={"noise": noise}), 1)


@NOISE
@pytest.mark.parametrize("ratio", [1.2, 1.5, 2.0])
def test_zero_filling_is_found_in_the_spectrum(tmp_path, anatomy, ratio, noise):
    coarse = coarse_of(anatomy, AxisDegradation(factor=2, profile="kspace", zero_filling=ratio), noise)
    found = assumed_of(tmp_path, coarse)
    assert found.profile == "kspace"
    assert found.zero_filling == pytest.approx((ratio,) * 3, rel=0.05)
    assert "by an edge in the scan's spectrum" in str(found)


def test_an_edge_that_noise_half_hides_is_found_where_two_axes_show_it():
    frequencies = np.arange(61)
    scatter = 0.15 * np.cos(2.4 * frequencies)
    edge, flat, short = np.exp(scatter - 0.6 * (frequencies > 40)), np.exp(scatter), np.zeros(0)
    assert zero_filling([edge, flat, short]) == (1, 1, 1)
    assert zero_filling([edge, flat, edge]) == pytest.approx((1.5, 1, 1.5), rel=0.05)


@NOISE
@pytest.mark.parametrize(
    "axis",
    [
        AxisDegradation(factor=2, profile="kspace"),
        AxisDegradation(factor=2, profile="kspace", apodisation="hamming"),
        AxisDegradation(factor=2),
        AxisDegradation(factor=2, blur_fwhm=3),
    ],
)
def test_no_zero_filling_is_found_where_there_is_none(tmp_path, anatomy, axis, noise):
    found = assumed_of(tmp_path, coarse_of(anatomy, axis, noise))
    assert found.zero_filling == (1, 1, 1)


def test_without_knowledge_a_magnitude_is_taken_as_the_model_says_and_tomography_as_a_box():
    model = named_degradation("kspace2x")
    assert default_acquisition(model, 0.0).profile == "kspace"
    guessed, seen = default_acquisition(model, -3.0), default_acquisition(model, -1024.0)
    assert "nothing is known" in str(guessed)
    assert seen.profile == "box"
    assert guessed.certainty < seen.certainty == 1


def test_an_acquisition_that_is_recorded_or_shown_is_known_and_a_default_is_not():
    thick, isotropic_model = named_degradation("thick4x"), named_degradation("kspace2x")
    box = ThroughPlane("box", 0.88, 0.15)
    recorded = default_acquisition(thick, 0.0, record=ScannerRecord(4.0), slice_distance=4.0)
    shown = default_acquisition(thick, 0.0, through=box)
    assert (recorded.known, shown.known) == (True, True)
    assert default_acquisition(thick, 0.0).certainty < shown.certainty < recorded.certainty == 1
    tomography = default_acquisition(isotropic_model, -1024.0)
    assert (default_acquisition(thick, 0.0).known, tomography.known) == (False, False)


def test_thick_slices_are_taken_as_the_scanner_recorded_them():
    model, gaussian = named_degradation("thick4x"), ThroughPlane("gaussian", 1.0, 0.15)
    encoded = default_acquisition(model, 0.0, through=gaussian, record=ScannerRecord(4.0, True))
    assert encoded.profile == "kspace"
    apart = default_acquisition(model, 0.0, record=ScannerRecord(3.0), slice_distance=4.0)
    assert (apart.profile, apart.gap) == ("box", 0.25)
    assert apart.degradation(NetworkShape(16, 8, 8), NetworkShape(4, 8, 8)).depth == AxisDegradation(factor=4, gap=0.25)
    assert str(apart) == "box, 25% of the slice distance in gaps (by the sidecar: slices of 3 mm)"
    seen = default_acquisition(model, 0.0, through=gaussian, record=ScannerRecord(4.0), slice_distance=4.0)
    assert (seen.profile, seen.gap) == ("gaussian", 0.0)
    isotropic_model = named_degradation("kspace2x")
    assert "nothing is known" in str(default_acquisition(isotropic_model, 0.0, record=ScannerRecord(1.0, True)))
