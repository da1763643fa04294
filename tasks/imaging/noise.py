"""The noise of a scan, estimated from its voxels."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

BLOCK = 4  # voxels along each side of a block whose spread is measured
SMOOTHEST_SHARE = 0.1  # share of the blocks that show the least: air, or tissue without edges
RAYLEIGH = 0.6551  # standard deviation of the magnitude of noise without a signal, over that of the noise
RAYLEIGH_RATIOS = (0.4, 0.65)  # of standard deviation to mean; the Rayleigh distribution has 0.523
MIN_SIGNAL_RATIO = 3  # ratio of signal to noise from which the noise of a magnitude is normal
MEDIAN_OF_MAGNITUDE = 0.6745  # of a normal distribution with standard deviation 1


def scan_noise(voxels: Array) -> float:
    """Estimate the standard deviation of a scan's noise.

    The air shows the noise alone, if it was not masked and if there is any; the finest diagonal detail of smooth tissue
    shows it too, if it is white. Each is wrong only upwards, by anatomy, so the smaller one is returned (Donoho and
    Johnstone, Biometrika 81, 1994, for the second).

    Args:
        voxels: float32 `[depth, height, width]`.

    Returns:
        In the unit of the voxels; 0 where a volume is too small for an estimate.
    """
    if min(voxels.shape) < 2 * BLOCK:
        return 0.0
    return min(_noise_of_air(voxels), _noise_of_detail(voxels))


def _noise_of_air(voxels: Array) -> float:
    blocks = _blocks(voxels)
    means, spreads = blocks.mean(axis=1, dtype=np.float64), blocks.std(axis=1, dtype=np.float64)
    faintest = means <= np.quantile(means, SMOOTHEST_SHARE)
    mean, spread = float(np.median(means[faintest])), float(np.median(spreads[faintest]))
    low, high = RAYLEIGH_RATIOS
    return spread / RAYLEIGH if low < spread / max(mean, 1e-12) < high else spread


def _noise_of_detail(voxels: Array) -> float:
    """The standard deviation of the Haar wavelet's diagonal detail where that is least, but not nothing."""
    detail = voxels
    for axis in range(3):
        even = detail.shape[axis] // 2 * 2
        pairs = np.moveaxis(detail, axis, 0)[:even].astype(np.float32)
        detail = np.moveaxis((pairs[1::2] - pairs[::2]) / np.float32(np.sqrt(2)), 0, axis)
    spreads = np.median(np.abs(_blocks(detail)), axis=1) / MEDIAN_OF_MAGNITUDE
    means = _blocks(voxels[::2, ::2, ::2][tuple(slice(size) for size in detail.shape)]).mean(axis=1)
    # In the air noise is of another size, and under a mask there is none.
    shown = spreads[(spreads > 0) & (means > MIN_SIGNAL_RATIO * spreads)]
    return float(np.quantile(shown, 2 * SMOOTHEST_SHARE)) if shown.size else 0.0


def _blocks(voxels: Array) -> Array:
    """Cut a volume into cubes, `[cubes, voxels]`; what is left over at the ends is left out."""
    depth, height, width = (size // BLOCK for size in voxels.shape)
    whole = voxels[: depth * BLOCK, : height * BLOCK, : width * BLOCK]
    cubes = whole.reshape(depth, BLOCK, height, BLOCK, width, BLOCK).transpose(0, 2, 4, 1, 3, 5)
    return np.ascontiguousarray(cubes.reshape(-1, BLOCK**3))
