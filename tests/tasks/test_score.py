import numpy as np
import pytest
from skimage.metrics import structural_similarity

from tasks.scoring.metrics import foreground_mask, psnr, ssim


@pytest.fixture
def pair():
    random = np.random.default_rng(0)
    truth = random.random((20, 24, 22), np.float32)
    return truth, truth + random.normal(0, 0.1, truth.shape).astype(np.float32)


def test_ssim_agrees_with_scikit_image(pair):
    truth, estimate = pair
    mask = np.zeros(truth.shape, bool)
    mask[6:-6, 6:-6, 6:-6] = True
    _, reference = structural_similarity(
        truth.astype(float),
        estimate.astype(float),
        data_range=1,
        gaussian_weights=True,
        use_sample_covariance=False,
        full=True,
    )
    assert ssim(truth, estimate, mask) == pytest.approx(reference[mask].mean(), abs=1e-9)


def test_only_the_mask_counts(pair):
    truth, estimate = pair
    mask = np.zeros(truth.shape, bool)
    mask[:10] = True
    elsewhere = estimate.copy()
    elsewhere[10:] = 7
    assert psnr(truth, elsewhere, mask) == psnr(truth, estimate, mask)


def test_the_truth_itself_scores_best(pair):
    truth, _ = pair
    assert psnr(truth, truth, foreground_mask(truth)) == np.inf
    assert ssim(truth, truth, foreground_mask(truth)) == pytest.approx(1)
