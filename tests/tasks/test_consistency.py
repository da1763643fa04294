import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from configs.axes import NetworkShape
from configs.degradation import AxisDegradation, Degradation, Noise, named_degradation
from configs.errors import InputError
from tasks.imaging.consistency import (
    MAX_PLANE_VALUES,
    TOLERANCE,
    axis_factors,
    axis_matrices,
    consistent_interpolation,
    correct,
    interpolation_correction,
    noise_level,
    recipe_at,
    residual,
    solve_correction,
)
from tasks.imaging.degrade import coarse_shape, degrade
from tasks.imaging.resample import resample

RECIPES = {
    "iso2x": named_degradation("iso2x"),
    "thick4x": named_degradation("thick4x"),
    "fractions": Degradation(
        name="fractions", depth=AxisDegradation(factor=2.5, profile="gaussian"), width=AxisDegradation(factor=1.5)
    ),
    "kspace": Degradation(name="kspace", height=AxisDegradation(factor=2, profile="kspace")),
    "gap": Degradation(name="gap", depth=AxisDegradation(factor=3, gap=0.5)),
}


def truth(shape=(20, 24, 22), seed=0):
    volume = np.random.default_rng(seed).random(shape, np.float32)
    return resample(resample(volume, (9, 10, 11)), shape)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_corrected_volume_explains_its_input_and_is_nearer_to_the_truth(recipe):
    fine = truth()
    coarse = degrade(fine, recipe)
    cubic = resample(coarse, fine.shape)
    corrected = correct(cubic, coarse, recipe)
    assert corrected.before > 10 * TOLERANCE
    assert corrected.after <= 1.01 * TOLERANCE
    np.testing.assert_allclose(corrected.after, np.sqrt(np.mean(residual(corrected.voxels, coarse, recipe) ** 2)))
    assert np.mean((corrected.voxels - fine) ** 2) < np.mean((cubic - fine) ** 2)


@settings(deadline=None, max_examples=20)
@given(name=st.sampled_from(sorted(RECIPES)), seed=st.integers(0, 99))
def test_the_matrices_degrade_as_the_recipe_does(name, seed):
    fine = truth(seed=seed)
    out = fine
    for axis, matrix in enumerate(axis_matrices(fine.shape, RECIPES[name])):
        if matrix is not None:
            out = np.moveaxis(np.tensordot(matrix, out, (1, axis)), 0, axis)
    np.testing.assert_allclose(out, degrade(fine, RECIPES[name]), atol=1e-5)


def test_the_correction_is_the_smallest_change_that_explains_the_input():
    # Of all volumes that explain a noiseless input, least squares over the whole matrix finds the nearest.
    recipe = RECIPES["thick4x"]
    fine = truth((8, 3, 2))
    coarse = degrade(fine, recipe)
    start = np.random.default_rng(1).random(fine.shape, np.float32)
    matrix = np.kron(np.kron(np.kron(np.eye(2), np.full((1, 4), 0.25)), np.eye(3)), np.eye(2))
    change, *_ = np.linalg.lstsq(matrix, (coarse - degrade(start, recipe)).ravel(), rcond=None)
    corrected = correct(start, coarse, recipe, tolerance=0).voxels
    np.testing.assert_allclose(corrected, start + change.reshape(fine.shape), atol=1e-5)


def test_a_volume_that_explains_its_input_is_left_alone():
    fine = truth()
    corrected = correct(fine, degrade(fine, RECIPES["iso2x"]), RECIPES["iso2x"])
    np.testing.assert_array_equal(corrected.voxels, fine)


def test_a_change_by_windows_is_the_whole_change():
    missing = np.random.default_rng(0).normal(0, 0.1, (10, 12, 11)).astype(np.float32)
    for recipe in (RECIPES["iso2x"], RECIPES["thick4x"].model_copy(update={"depth": AxisDegradation(factor=2)})):
        shape = tuple(round(size * factor) for size, factor in zip(missing.shape, recipe.scale, strict=True))
        change = solve_correction(missing, NetworkShape(*shape), recipe)
        assert change is not None
        whole = change.window(slice(None), slice(None), slice(None))
        window = slice(3, 9), slice(0, 5), slice(4, 11)
        np.testing.assert_allclose(change.window(*window), whole[window], atol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_correction_holds_a_few_arrays_of_the_size_of_the_input(noise):
    recipe, shape = RECIPES["iso2x"], NetworkShape(192, 192, 160)
    scan = np.random.default_rng(0).random((96, 96, 80), np.float32)
    axis_factors(shape, recipe)  # which are kept
    tracemalloc.start()
    try:
        found = interpolation_correction(scan, shape, recipe, noise)
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found is not None
    planes = 6 * 8 * MAX_PLANE_VALUES
    assert most < 6 * scan.nbytes + planes
    assert held < 1.1 * scan.nbytes


def test_noise_within_the_tolerance_is_not_explained():
    recipe = RECIPES["iso2x"]
    fine = truth()
    noisy = degrade(fine, recipe.model_copy(update={"noise": Noise(sigma=0.02)}), seed=3)
    careful, greedy = (correct(fine, noisy, recipe, tolerance=t).voxels for t in (0.019, 1e-5))
    careful_error, greedy_error = (np.sqrt(np.mean((v - fine) ** 2)) for v in (careful, greedy))
    assert careful_error < 0.01
    assert greedy_error > 0.03


def test_a_recipe_is_stretched_to_another_scale():
    recipe = recipe_at(RECIPES["iso2x"], NetworkShape(30, 20, 10), NetworkShape(10, 10, 10))
    assert recipe.scale == (3.0, 2.0, 1.0)
    assert [axis.blur_fwhm for axis in recipe.axes] == [3.0, 2.0, 0.0]
    assert coarse_shape(NetworkShape(30, 20, 10), recipe) == (10, 10, 10)


def test_an_input_of_another_shape_is_refused():
    other = np.zeros((5, 6, 5), np.float32)
    with pytest.raises(InputError, match=r"iso2x makes \(10, 12, 11\) of it, and the input has \(5, 6, 5\)"):
        correct(truth(), other, RECIPES["iso2x"])


def anatomy(shape=(48, 48, 48)):
    """Smooth regions with sharp borders."""
    field = gaussian_filter(np.random.default_rng(2).normal(size=shape), 4)
    return (0.3 + 0.3 * (field > 0) + 0.3 * (field > 0.02)).astype(np.float32)


def test_sharp_anatomy_is_no_noise():
    coarse = degrade(anatomy(), RECIPES["iso2x"])
    assert noise_level(coarse, NetworkShape(48, 48, 48), RECIPES["iso2x"]) < 0.004


@pytest.mark.parametrize("sigma", [0.01, 0.03, 0.1])
def test_noise_is_measured_and_not_blown_up(sigma):
    recipe, fine = RECIPES["iso2x"], anatomy()
    coarse = degrade(fine, recipe.model_copy(update={"noise": Noise(sigma=sigma)}), seed=3)
    found = noise_level(coarse, fine.shape, recipe)
    assert found == pytest.approx(sigma, rel=0.15)
    cubic = resample(coarse, fine.shape)
    error, careful, greedy = (
        np.mean((voxels - fine) ** 2)
        for voxels in (
            cubic,
            correct(cubic, coarse, recipe, noise=found).voxels,
            correct(cubic, coarse, recipe).voxels,
        )
    )
    assert careful < 1.01 * error
    assert greedy > 1.2 * careful


@pytest.mark.parametrize("sigma", [0.01, 0.02, 0.05])
@pytest.mark.parametrize("name", ["kspace2x", "box2x", "iso2x"])
def test_an_interpolation_gains_by_the_correction_however_noisy_its_input_is(name, sigma):
    recipe, fine = named_degradation(name), anatomy()
    coarse = degrade(fine, recipe.model_copy(update={"noise": Noise(sigma=sigma)}), seed=3)
    cubic, corrected = (
        np.mean((voxels - fine) ** 2)
        for voxels in (resample(coarse, fine.shape), consistent_interpolation(coarse, fine.shape, recipe, sigma))
    )
    assert corrected < cubic


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_correction_of_an_interpolation_is_that_of_the_interpolated_volume(recipe):
    fine = truth()
    coarse = degrade(fine, recipe)
    cubic = resample(coarse, fine.shape)
    found = interpolation_correction(coarse, NetworkShape(*fine.shape), recipe)
    assert found is not None
    whole = found.window(slice(None), slice(None), slice(None))
    np.testing.assert_allclose(cubic + whole, correct(cubic, coarse, recipe).voxels, atol=2e-4)


def test_noise_is_estimated_where_a_degradation_erases_nothing():
    noisy = degrade(np.pad(truth(), 16), named_degradation("box2x").model_copy(update={"noise": Noise(sigma=0.05)}))
    assert noise_level(noisy, NetworkShape(52, 56, 54), named_degradation("box2x")) == pytest.approx(0.05, rel=0.25)
