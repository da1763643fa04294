"""Intensity normalisation, found robustly: 0 for air, about 1 for the brightest of the foreground; and its inverse."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError

LEVEL_CONTRAST = 0.2  # ratio of contrast to level below which the level is subtracted
CLIP = 1.5  # of the training and scoring protocol, in normalised intensity


@dataclass(frozen=True)
class Intensity:
    """The two intensities of a volume that become 0 and 1.

    Args:
        low: In the unit of the volume; becomes 0.
        high: In the unit of the volume; becomes 1.
    """

    low: float
    high: float


def find_intensity(voxels: NDArray[np.float32]) -> Intensity:
    """Find the intensities of a volume by percentiles of the foreground, not of the air.

    Without negative values, low is 0 and high the 99.5th percentile of the positive voxels. With negative values (CT,
    or ringing below 0), low is the 0.5th percentile of all voxels, the foreground is what lies above the lowest
    twentieth of the range from there to the 99.9th percentile, and high is the 99.5th percentile of the foreground.
    NaN and infinities are left out.

    Raises:
        InputError: The finite voxels are all equal, or there are none.
    """
    finite = voxels[np.isfinite(voxels)]
    if finite.size == 0 or finite.min() == finite.max():
        raise InputError("Cannot find the intensity range: the finite voxels are all equal, or there are none.")
    if finite.min() >= 0:
        return Intensity(0.0, float(np.percentile(finite[finite > 0], 99.5)))
    low, top = np.percentile(finite, (0.5, 99.9)).tolist()
    foreground = finite[finite > low + (top - low) / 20]
    high = float(np.percentile(foreground, 99.5)) if foreground.size else top
    return Intensity(low, high) if high > low else Intensity(float(finite.min()), float(finite.max()))


def find_level(voxels: NDArray[np.float32]) -> float:
    """Return the level on which a volume of small contrast stands; 0 where the contrast is not small.

    An image such as 30,000 ± 25 has no air to become 0: without its level the contrast is all that is normalised.

    Args:
        voxels: 3D, finite.
    """
    low, high = np.percentile(voxels[::2, ::2, ::2], (0.5, 99.5))
    return float(np.float32(low)) if 0 < high - low < LEVEL_CONTRAST * abs(low) else 0.0


def normalise(
    voxels: NDArray[np.float32],
    intensity: Intensity,
    clip: float | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Map low to 0 and high to 1.

    Args:
        voxels: In the unit of the volume, any shape.
        intensity: From `find_intensity` of the whole volume.
        clip: Limit to 0..clip; training and scores use `CLIP`.
        out: Receives the result, and may be `voxels` itself.

    >>> normalise(np.array([0, 50, 400], np.float32), Intensity(0, 100), clip=1.5).tolist()
    [0.0, 0.5, 1.5]
    """
    low, span = np.float32(intensity.low), np.float32(intensity.high - intensity.low)
    normalised: NDArray[np.float32] = np.divide(
        np.subtract(np.asarray(voxels, np.float32), low, out=out), span, out=out
    )
    return normalised if clip is None else np.clip(normalised, 0, np.float32(clip), out=out)


def restore(normalised: NDArray[np.float32], intensity: Intensity) -> NDArray[np.float32]:
    """Undo `normalise` (without clip)."""
    low, span = np.float32(intensity.low), np.float32(intensity.high - intensity.low)
    return np.asarray(normalised, np.float32) * span + low
