"""Fine to coarse: the protocol, the field of view, and what must not change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from configs.axes import NetworkShape
from configs.degradation import DEGRADATIONS, AxisDegradation, Degradation, Noise, named_degradation
from configs.errors import ConfigError
from tasks.imaging.degrade import coarse_shape, degrade
from tasks.imaging.resample import resample

RECIPES = [
    *DEGRADATIONS.values(),
    Degradation(name="gap", depth=AxisDegradation(factor=5, gap=0.2)),
    Degradation(name="gaussian profile", depth=AxisDegradation(factor=3.5, profile="gaussian")),
    Degradation(name="kspace", width=AxisDegradation(factor=2, profile="kspace")),
    Degradation(name="odd", height=AxisDegradation(factor=1.7, blur_fwhm=1.3), width=AxisDegradation(factor=2.5)),
]


def head(shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def test_iso2x_is_a_gaussian_and_a_block_mean():
    voxels = head((16, 20, 24))
    blurred = ndimage.gaussian_filter(voxels.astype(float), 2 / (2 * np.sqrt(2 * np.log(2))), mode="nearest")
    expected = blurred.reshape(8, 2, 10, 2, 12, 2).mean((1, 3, 5))
    np.testing.assert_allclose(degrade(voxels, named_degradation("iso2x")), expected, atol=1e-6)


def test_thick4x_is_the_mean_of_four_slices():
    voxels = head((16, 20, 24))
    expected = voxels.reshape(4, 4, 20, 24).mean(1)
    np.testing.assert_allclose(degrade(voxels, named_degradation("thick4x")), expected, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 2.5, 1.7, 3, 7])
def test_a_box_counts_parts_of_voxels_nearly(factor):
    size = 19
    wanted = round(size / factor)
    voxels = head((size, 2, 2))
    # Nearly: the weights are tilted until ramps are exact.
    integral = np.concatenate([[0], np.cumsum(voxels[:, 0, 0].astype(float))])
    edges = np.interp(np.linspace(0, size, wanted + 1), np.arange(size + 1), integral)
    found = degrade(voxels, Degradation(name="box", depth=AxisDegradation(factor=factor)))
    np.testing.assert_allclose(found[:, 0, 0], np.diff(edges) / (size / wanted), atol=0.06)


def test_kspace_keeps_what_is_below_the_limit_and_nothing_above():
    size, wanted = 48, 24
    x = np.arange(size)
    slow, fast = (np.cos(2 * np.pi * f * (x + 0.5) / size) for f in (5, 17))
    voxels = np.broadcast_to((slow + fast)[:, None, None], (size, 3, 2)).astype(np.float32)
    found = degrade(voxels, Degradation(name="k", depth=AxisDegradation(factor=2, profile="kspace")))
    centres = (np.arange(wanted) + 0.5) * 2 - 0.5
    np.testing.assert_allclose(found[:, 0, 0], np.cos(2 * np.pi * 5 * (centres + 0.5) / size), atol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_constant_stays(recipe):
    found = degrade(np.full((21, 17, 23), 7.5, np.float32), recipe)
    assert found.shape == coarse_shape(NetworkShape(21, 17, 23), recipe)
    np.testing.assert_allclose(found, 7.5, rtol=1e-5)


@pytest.mark.parametrize(
    "recipe", [r for r in RECIPES if "kspace" not in {axis.profile for axis in r.axes}], ids=lambda recipe: recipe.name
)
def test_a_ramp_comes_back_from_degrading_and_resampling(recipe):
    shape = (100, 65, 63)
    depth, height, width = np.ogrid[:100, :65, :63]
    ramp = (depth + 2.0 * height + 3.0 * width).astype(np.float32)
    back = resample(degrade(ramp, recipe), shape)
    inner = (slice(40, -40), slice(24, -24), slice(24, -24))
    np.testing.assert_allclose(back[inner], ramp[inner], atol=2e-3)


axis_recipes = st.builds(
    AxisDegradation,
    factor=st.floats(1, 6),
    blur_fwhm=st.sampled_from([0.0]) | st.floats(0.3, 4),
    profile=st.sampled_from(["box", "gaussian"]),
    gap=st.floats(0, 0.9),
)


@given(axis_recipes, st.integers(0, 2))
def test_a_coarse_voxel_of_a_ramp_is_the_ramp_at_its_centre(recipe, axis):
    size = 90
    ramp = np.moveaxis(np.broadcast_to(np.arange(size, dtype=np.float32), (2, 3, size)), 2, axis)
    found = np.moveaxis(degrade(ramp, Degradation(name="any", **{("depth", "height", "width")[axis]: recipe})), axis, 2)
    centres = (np.arange(found.shape[2]) + 0.5) * size / found.shape[2] - 0.5
    inner = (centres > 25) & (centres < 65)
    np.testing.assert_allclose(found[0, 0, inner], centres[inner], atol=1e-3)


def test_noise_goes_by_the_seed():
    voxels = np.full((20, 20, 20), 0.5, np.float32)
    recipe = Degradation(name="noisy", noise=Noise(kind="gaussian", sigma=0.1))
    np.testing.assert_array_equal(degrade(voxels, recipe, 3), degrade(voxels, recipe, 3))
    assert not np.array_equal(degrade(voxels, recipe, 3), degrade(voxels, recipe, 4))
    assert degrade(voxels, recipe, 3).std() == pytest.approx(0.1, rel=0.05)


def test_rician_noise_lifts_the_air():
    """The mean of the Rayleigh distribution is sigma times the square root of pi/2."""
    recipe = Degradation(name="noisy", noise=Noise(kind="rician", sigma=0.1))
    found = degrade(np.zeros((30, 30, 30), np.float32), recipe, 1)
    assert found.mean() == pytest.approx(0.1 * np.sqrt(np.pi / 2), rel=0.02)


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(ConfigError, match="iso2x, kspace2x"):
        named_degradation("iso3x")


def transfer(size=128, **options):
    """Measure the share of each spatial frequency that a degradation leaves; the coarse Nyquist frequency is 1."""
    recipe = Degradation(name="wave", depth=AxisDegradation(factor=2, **options))
    places = (np.arange(size) + 0.5) / size
    found = []
    for frequency in range(1, size // 4):
        wave = np.cos(2 * np.pi * frequency * places).astype(np.float32)[:, None, None]
        found.append(2 * np.abs(np.fft.rfft(degrade(wave, recipe)[:, 0, 0])[frequency]) / (size // 2))
    return np.arange(1, size // 4) / (size // 4), np.array(found)


def test_apodisation_and_zero_filling_act_on_frequencies_as_their_formulas_say():
    frequency, plain = transfer(profile="kspace")
    np.testing.assert_allclose(plain, 1, atol=0.01)
    _, hamming = transfer(profile="kspace", apodisation="hamming")
    np.testing.assert_allclose(hamming, 0.54 + 0.46 * np.cos(np.pi * frequency), atol=0.01)
    _, tukey = transfer(profile="kspace", apodisation="tukey")
    np.testing.assert_allclose(tukey[frequency < 0.5], 1, atol=0.01)
    assert (np.diff(tukey[frequency > 0.5]) < 0).all()
    _, filled = transfer(profile="kspace", zero_filling=1.5)
    np.testing.assert_allclose(filled, frequency <= 2 / 3, atol=0.01)


def test_what_belongs_to_kspace_is_refused_elsewhere():
    with pytest.raises(ValueError, match="belong to the profile kspace"):
        AxisDegradation(factor=2, zero_filling=1.5)
