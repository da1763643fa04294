"""Intensity: by the foreground, not the air; inverted without loss."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import InputError
from tasks.volume.intensity import Intensity, find_intensity, normalise, restore


def test_without_negatives_it_is_the_protocol():
    voxels = np.random.default_rng(0).gamma(2, 100, (20, 20, 20)).astype(np.float32)
    voxels[:10] = 0
    assert find_intensity(voxels) == Intensity(0.0, float(np.percentile(voxels[voxels > 0], 99.5)))


@pytest.mark.parametrize("air", [0.3, 0.9])
def test_the_share_of_air_does_not_matter_in_ct(air):
    generator = np.random.default_rng(1)
    foreground = generator.normal(40, 30, 100_000)
    foreground[:5_000] = generator.normal(900, 100, 5_000)
    voxels = np.concatenate([np.full(int(1e5 * air / (1 - air)), -1000.0), foreground]).astype(np.float32)
    found = find_intensity(voxels)
    assert found.low == -1000
    assert found.high == pytest.approx(np.percentile(foreground, 99.5), rel=0.01)


def test_slight_ringing_below_zero_changes_little():
    voxels = np.random.default_rng(0).gamma(2, 100, 100_000).astype(np.float32)
    voxels[:50_000] = 0
    whole = find_intensity(voxels)
    voxels[:500] = -3
    ringing = find_intensity(voxels)
    assert ringing.high == pytest.approx(whole.high, rel=0.05)
    assert abs(ringing.low) < 0.01 * whole.high


def test_not_a_number_is_left_out():
    voxels = np.array([np.nan, np.inf, -np.inf, 0, 1, 2], np.float32)
    assert np.isfinite([find_intensity(voxels).low, find_intensity(voxels).high]).all()


@pytest.mark.parametrize("voxels", [np.zeros((3, 3)), np.full((3, 3), -5.0), np.full((3, 3), np.nan)])
def test_a_constant_has_no_range(voxels):
    with pytest.raises(InputError, match="all equal"):
        find_intensity(voxels.astype(np.float32))


@given(st.lists(st.floats(-3000, 3000, width=32), min_size=2, max_size=50).filter(lambda v: max(v) - min(v) > 1))
def test_restoring_undoes_normalising(values):
    voxels = np.array(values, np.float32)
    intensity = find_intensity(voxels)
    assert intensity.high > intensity.low
    scale = max(abs(intensity.low), abs(intensity.high), np.abs(voxels).max())
    np.testing.assert_allclose(restore(normalise(voxels, intensity), intensity), voxels, atol=2e-6 * scale)
