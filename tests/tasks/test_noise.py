"""The noise of a scan, estimated from its voxels."""

import numpy as np
import pytest

from configs.axes import NetworkShape
from configs.degradation import Degradation, Noise
from tasks.imaging.degrade import degrade
from tasks.imaging.noise import scan_noise
from tasks.training.anatomy import draw_tissues


@pytest.fixture(scope="module")
def anatomy():
    """A piece with air around the brain, and without noise of its own to speak of."""
    voxels = draw_tissues(np.random.default_rng(5), NetworkShape(96, 96, 96))
    voxels[:, :16] = 0
    return voxels


@pytest.mark.parametrize("kind", ["gaussian", "rician"])
@pytest.mark.parametrize("sigma", [0.01, 0.03, 0.1])
def test_the_noise_of_a_scan_with_air_is_found(anatomy, kind, sigma):
    noisy = degrade(anatomy, Degradation(name="noisy", noise=Noise(kind=kind, sigma=sigma)), 1)
    assert scan_noise(noisy) == pytest.approx(sigma, rel=0.2)
    assert scan_noise(100 * noisy) == pytest.approx(100 * scan_noise(noisy), rel=1e-3)


def test_masked_air_hides_no_noise_of_the_tissue(anatomy):
    masked = degrade(anatomy, Degradation(name="noisy", noise=Noise(sigma=0.05)), 1) * (anatomy > 0.05)
    assert scan_noise(masked) < 0.06


def test_a_scan_without_noise_has_none_and_a_tiny_one_tells_none(anatomy):
    smooth = np.fromfunction(lambda i, j, k: np.sin(i / 9) + np.sin(j / 7) + np.sin(k / 11), (48, 48, 48))
    assert scan_noise(smooth.astype(np.float32)) < 0.01
    assert scan_noise(anatomy[:7]) == 0
