import numpy as np
import pytest
from scipy import ndimage

from configs.axes import FileShape
from configs.degradation import Noise, named_degradation
from configs.errors import InputError
from tasks.imaging.degrade import degrade
from tasks.scoring.protocol import Score, degraded_reference
from tasks.training.job import ValidationVolume, baseline_psnr
from tasks.volume.grid import Grid
from tasks.volume.nifti import read_volume, write_volume


@pytest.fixture
def degraded(tmp_path):
    voxels = np.random.default_rng(0).gamma(2.0, 100.0, (21, 18, 19)).astype(np.float32)
    write_volume(tmp_path / "reference.nii", voxels, Grid(FileShape(*voxels.shape), np.eye(4)))
    return degraded_reference(read_volume(tmp_path / "reference.nii"), named_degradation("iso2x"))


def test_only_what_is_in_the_mask_is_scored(degraded):
    mask = np.zeros(degraded.reference.grid.shape, bool)
    mask[:10] = True
    spoilt = degraded.reference.voxels.copy()
    spoilt[10:] = 0
    scores = degraded.scores(spoilt, mask=mask)
    assert scores.psnr.restored == np.inf
    assert scores.nmse.restored == 0
    assert scores.psnr.cubic != degraded.scores(spoilt).psnr.cubic
    assert np.isfinite(degraded.scores(spoilt).psnr.restored)


def test_an_empty_mask_is_refused(degraded):
    with pytest.raises(InputError, match="no voxel of the part to score is in the mask"):
        degraded.scores(degraded.reference.voxels, mask=np.zeros(degraded.reference.grid.shape, bool))


def decibels(truth, estimate, mask):
    return -10 * np.log10(np.mean((truth - estimate)[mask] ** 2))


def least_norm_baselines(truth, recipe, noise=0.0):
    """PSNR of the baselines, computed by SciPy's zoom and the whole matrix of the degradation."""
    mask = truth > 0.05
    noiseless = recipe.model_copy(update={"noise": Noise()})
    impulses = np.eye(truth.size, dtype=np.float32).reshape(-1, *truth.shape)
    matrix = np.stack([degrade(impulse, noiseless).ravel() for impulse in impulses], axis=1).astype(np.float64)
    coarse = degrade(truth, recipe)
    cubic, linear = (ndimage.zoom(coarse, 2, order=order, mode="nearest", grid_mode=True) for order in (3, 1))
    lacks = coarse.ravel() - matrix @ cubic.ravel()
    if noise:  # one damping for all frequencies: that of white errors
        damping = noise**2 / ((np.mean(lacks**2) - noise**2) / np.mean(np.linalg.svd(matrix, compute_uv=False) ** 2))
    else:
        damping = 0.0
    added = matrix.T @ np.linalg.solve(matrix @ matrix.T + damping * np.eye(coarse.size), lacks)
    corrected = cubic + added.reshape(truth.shape)
    estimates = {"corrected": corrected, "cubic": cubic, "trilinear": linear}
    return {name: decibels(truth, estimate, mask) for name, estimate in estimates.items()}


def textured(shape=(8, 10, 6)):
    """Normalised voxels with detail that a coarse volume holds and cubic interpolation loses."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 0.8)
    return np.float32(0.5 + 0.4 * smooth / np.abs(smooth).max())


@pytest.mark.parametrize("name", ["box2x", "kspace2x"])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_baselines_are_interpolation_and_the_closed_form_by_the_true_acquisition(tmp_path, name, noise):
    """The reference has a unit of its own, in which the 99.5th percentile is 1."""
    truth = textured()
    high = np.percentile(truth, 99.5)
    recipe = named_degradation(name)
    noisy = recipe.model_copy(update={"noise": Noise(sigma=noise)})
    write_volume(tmp_path / "reference.nii", 700 * truth / high, Grid(FileShape(*truth.shape), np.eye(4)))
    degraded = degraded_reference(read_volume(tmp_path / "reference.nii"), noisy)
    score = degraded.scores(degraded.reference.voxels).psnr
    # The axes of the network are those of the file, reversed.
    expected = least_norm_baselines(np.float32(truth / high).transpose(), noisy, noise)
    found = {key: getattr(score, key) for key in expected}
    if noise:  # the errors of an interpolation are not white, so more can be explained
        assert expected["corrected"] < found.pop("corrected") < expected.pop("corrected") + 0.2
    assert found == pytest.approx(expected, abs=0.02)
    assert score.best_baseline == "corrected"


def test_the_gain_is_over_the_best_baseline():
    assert Score(30.0, 29.0, 28.0, 27.0).gain == 1.0
    assert Score(30.0, 25.0, 28.0, 27.0).gain == 2.0
    assert Score(30.0, 25.0, 26.0, 31.0).gain == -1.0


def test_validation_has_the_same_baselines_whatever_the_network_reads():
    fine, recipe = textured(), named_degradation("kspace2x")
    volume = ValidationVolume(degrade(fine, recipe), np.zeros_like(fine), fine)
    assert baseline_psnr([volume], recipe) == pytest.approx(least_norm_baselines(fine, recipe), abs=0.02)
