"""The slice profile of a scan of thick slices, found by comparing the detail across slices with that within them.

Anatomy is about as detailed along one axis as along another, so the power of its spatial frequencies depends on their
length alone: a curve that the slices show, where they are sharp. Across the slices a profile of transfer function H
leaves, of the power P at the frequency u and the in-plane frequency r, in cycles per slice distance,

    Σ |H(u + m)|² P(√((u + m)² + r²)) + σ²    over all whole m,

the slices being samples of the profile's output (m ≠ 0 is the aliasing), and σ² the noise. Every profile is fitted with
a curve of its own, and the one that explains the spectrum best is the answer.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.optimize import least_squares

from configs.degradation import Profile
from tasks.imaging.noise import scan_noise

Array = NDArray[np.float64]

ACROSS_BINS, WITHIN_BINS = 12, 16  # of frequency, across the slices and within them
WITHIN_RANGE = (0.1, 1.5)  # cycles per slice distance: near the frequencies that the slices can show
NYQUIST_SHARE = 0.9  # of the slices' own highest frequency, up to which they are taken to be sharp
MIDDLE = 0.4  # cycles per slice distance: where the curve's logarithm is expanded
ORDERS = range(-3, 4)  # of the aliasing
MAX_WEIGHT = 20.0  # of a bin, however many frequencies it holds
MIN_FLOOR = 1e-7  # of the power of the noise, where the range of the voxels is 1
MIN_SLICES, MIN_ACROSS = 12, 24  # voxels along the axes of a volume, below which nothing can be found
FWHM_PER_SIGMA = 2.3548
# Width in slice distances, FWHM and its uncertainty. Slices with and without a gap of 25 % look nearly alike, so that
# the FWHM of a box is that in the middle.
CANDIDATES: tuple[tuple[Profile, float, float, float], ...] = (
    ("kspace", 1.0, 1.2, 0.2),
    ("box", 1.0, 0.88, 0.15),
    ("box", 0.75, 0.88, 0.15),
    ("gaussian", 1.0, 1.0, 0.15),
)


@dataclass(frozen=True)
class ThroughPlane:
    """Slice profile of a scan.

    Args:
        profile: As in `configs.degradation.AxisDegradation`.
        fwhm: Full width at half maximum, in slice distances.
        uncertainty: Half the range in which it lies in about nine of ten scans.
    """

    profile: Profile
    fwhm: float
    uncertainty: float


def through_plane(voxels: NDArray[np.float32], ratio: float) -> ThroughPlane | None:
    """Find the slice profile of a scan.

    Args:
        voxels: float32 `[slices, height, width]`, finite, of a scan whose slices are square.
        ratio: Slice distance over the spacing of voxels within a slice.

    Returns:
        None for a volume too small to show it, or without contrast.
    """
    slices, *within = voxels.shape
    if slices < MIN_SLICES or min(within) < MIN_ACROSS or voxels.min() == voxels.max():
        return None
    low, high = float(voxels.min()), float(voxels.max())
    normalised = (voxels - np.float32(low)) / np.float32(high - low)
    across, radius, power, count = _binned(normalised, ratio)
    if power.size < len(ORDERS):
        return None
    floor = float(np.log(scan_noise(normalised) ** 2 + MIN_FLOOR))
    costs = [
        _cost(_transfer(profile, width, across), across, radius, power, count, floor)
        for profile, width, *_ in CANDIDATES
    ]
    profile, _, fwhm, uncertainty = CANDIDATES[int(np.argmin(costs))]
    return ThroughPlane(profile, fwhm, uncertainty)


def _binned(voxels: NDArray[np.float32], ratio: float) -> tuple[Array, Array, Array, Array]:
    """Average the power of a volume's cosine transform over bins of frequency.

    Returns:
        Of each bin, its frequency across the slices and within them, both in cycles per slice distance, its mean power,
        and how many frequencies it holds.
    """
    power = np.square(dctn(voxels, norm="ortho"))
    across, height, width = (np.arange(size) / (2 * size) for size in voxels.shape)
    radius = np.hypot(height[:, None], width) * ratio
    edges = np.linspace(WITHIN_RANGE[0], min(WITHIN_RANGE[1], NYQUIST_SHARE * ratio / 2), WITHIN_BINS + 1)
    column = np.digitize(radius, edges) - 1
    row = np.digitize(across, np.linspace(0, 0.5, ACROSS_BINS + 1)) - 1
    row[0] = -1  # the mean over the slices is no sample of a random texture
    found = []
    for i in range(ACROSS_BINS):
        for j in range(WITHIN_BINS):
            rows, columns = row == i, column == j
            if rows.any() and columns.any():
                values = power[rows][:, columns]
                found.append((across[rows].mean(), radius[columns].mean(), values.mean(dtype=np.float64), values.size))
    across_bins, within_bins, means, counts = np.array(found, np.float64).reshape(-1, 4).T
    return across_bins, within_bins, means, counts


def _transfer(profile: Profile, width: float, across: Array) -> Array:
    """The squared transfer function of a profile at each frequency and its aliases, `[frequency, order]`."""
    frequency = across[:, None] + ORDERS
    if profile == "kspace":
        return (np.abs(frequency) <= 0.5).astype(np.float64)
    if profile == "box":
        return np.asarray(np.sinc(width * frequency) ** 2)
    return np.exp(-((2 * np.pi * width / FWHM_PER_SIGMA * frequency) ** 2))


def _cost(transfer: Array, across: Array, radius: Array, power: Array, count: Array, floor: float) -> float:
    """Misfit of the best curve to the power, by a profile's transfer function.

    Args:
        transfer: As `_transfer` returns it.
        across: Frequency across the slices of each bin.
        radius: Frequency within them.
        power: Mean power.
        count: Frequencies of each bin.
        floor: Logarithm of the power of the noise, as far as it is known.
    """
    weights = np.minimum(np.sqrt(count), MAX_WEIGHT)
    logarithm = np.log(np.hypot(across[:, None] + ORDERS, radius[:, None]) / MIDDLE)
    measured = np.log(power + np.finfo(np.float64).tiny)

    def residuals(curve: Array) -> Array:
        level, slope, bend, noise = curve
        seen = (np.exp(level - slope * logarithm - bend * logarithm**2) * transfer).sum(axis=1)
        differences = weights * (np.log(seen + np.exp(noise)) - measured)
        # The noise is known and curves are nearly straight: without this, they would explain any profile.
        return np.concatenate([differences, [MAX_WEIGHT * (noise - floor), bend]])

    start = [float(np.median(measured)), 3.0, 0.0, floor]
    return float(least_squares(residuals, start, loss="soft_l1").cost)
