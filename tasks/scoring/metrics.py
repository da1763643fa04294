"""Scores of a restored volume against the truth: PSNR and SSIM inside a mask, on normalised intensities."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

FOREGROUND_THRESHOLD = 0.05


def foreground_mask(normalised: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Find the foreground: the voxels where the normalised truth is over 0.05.

    Args:
        normalised: Truth on the [0, 1] scale, any shape.

    Returns:
        Mask of the same shape.
    """
    return normalised > FOREGROUND_THRESHOLD


def psnr(truth: NDArray[np.float32], estimate: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """Compute the peak signal-to-noise ratio in dB, with peak 1, over the voxels of a mask.

    Args:
        truth: True volume on the [0, 1] scale.
        estimate: Volume to score, of the same shape.
        mask: Voxels that count, of the same shape; at least one.

    Returns:
        Decibels; infinite for equal volumes.

    >>> truth = np.zeros((2, 2, 2), np.float32)
    >>> round(psnr(truth, truth + np.float32(0.1), np.ones_like(truth, bool)), 3)
    20.0
    """
    difference = truth[mask].astype(np.float64) - estimate[mask]
    error = float(np.mean(difference**2))
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def nmse(truth: NDArray[np.float32], estimate: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """Compute the squared error over the squared truth, over the voxels of a mask; arguments as for `psnr`."""
    difference = truth[mask].astype(np.float64) - estimate[mask]
    return float(np.sum(difference**2) / np.sum(truth[mask].astype(np.float64) ** 2))


def ssim(truth: NDArray[np.float32], estimate: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """Compute the structural similarity with data range 1 and a Gaussian window of 1.5 voxels, averaged over a mask.

    Source: Wang et al., Image quality assessment: from error visibility to structural similarity, 2004, with K1 0.01
    and K2 0.03.

    Args:
        truth: True volume on the [0, 1] scale.
        estimate: Volume to score, of the same shape.
        mask: Voxels that count, of the same shape; at least one.

    Returns:
        Similarity; 1 for equal volumes.
    """

    def blur(volume: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(gaussian_filter(volume, 1.5, truncate=3.5))

    x, y = truth.astype(np.float64), estimate.astype(np.float64)
    mean_x, mean_y = blur(x), blur(y)
    variance_x = blur(x * x) - mean_x**2
    variance_y = blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return float(similarity[mask].mean())
