"""The acquisition that is assumed of a scan, and the degradation that follows."""

import pytest

from configs.axes import NetworkShape
from configs.degradation import AxisDegradation, named_degradation
from tasks.imaging.acquisition import Acquisition, default_acquisition

FINE, COARSE = NetworkShape(64, 60, 50), NetworkShape(16, 30, 50)


@pytest.mark.parametrize("profile", ["kspace", "box", "gaussian"])
def test_each_axis_is_degraded_by_the_scale_between_the_shapes(profile):
    found = Acquisition(profile, (0.5, 0.0, 1.0)).degradation(FINE, COARSE)
    assert found.depth == AxisDegradation(factor=4, profile=profile, blur_fwhm=2)
    assert found.height == AxisDegradation(factor=2, profile=profile)
    assert found.width == AxisDegradation()


def test_without_knowledge_a_magnitude_is_taken_as_the_model_says_and_tomography_as_a_box():
    model = named_degradation("kspace2x")
    assert default_acquisition(model, 0.0).profile == "kspace"
    assert "nothing is known" in str(default_acquisition(model, -3.0))
    assert default_acquisition(model, -1024.0).profile == "box"
