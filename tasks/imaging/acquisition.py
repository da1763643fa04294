"""The acquisition of a scan: what turned tissue into its voxels, as far as it is known."""

from dataclasses import dataclass
from typing import Literal

from configs.axes import NetworkShape
from configs.degradation import AxisDegradation, Degradation

Profile = Literal["kspace", "box", "gaussian"]
Three = tuple[float, float, float]

TOMOGRAPHY_THRESHOLD = -200.0  # Hounsfield units, between fat and air; magnitudes of MR are not negative
WORDS: dict[Profile, str] = {"kspace": "k-space truncation", "box": "box", "gaussian": "Gaussian profile"}


@dataclass(frozen=True)
class Acquisition:
    """Knowledge of an acquisition.

    Args:
        profile: As in `configs.degradation.AxisDegradation`, along every axis that is super-resolved.
        blur: FWHM of a Gaussian blur that comes on top, in voxels of the scan, along depth, height and width.
        source: Where the knowledge comes from, in words.
    """

    profile: Profile
    blur: Three = (0.0, 0.0, 0.0)
    source: str = "given"

    def __str__(self) -> str:
        """Describe it, as in `k-space truncation (given)`.

        >>> str(Acquisition("box", (0.5, 0.5, 0.5)))
        'box, blurred by 0.5 x 0.5 x 0.5 voxels FWHM along depth, height and width (given)'
        """
        widths = " x ".join(f"{fwhm:g}" for fwhm in self.blur)
        blurred = f", blurred by {widths} voxels FWHM along depth, height and width" if any(self.blur) else ""
        return f"{WORDS[self.profile]}{blurred} ({self.source})"

    def degradation(self, fine: NetworkShape, coarse: NetworkShape) -> Degradation:
        """Return the degradation that leads from a target grid to the scan.

        Args:
            fine: Shape of the target grid.
            coarse: Shape of the scan, no larger along any axis.
        """
        axes = {}
        for name, size, wanted, fwhm in zip(NetworkShape._fields, fine, coarse, self.blur, strict=True):
            factor = size / wanted
            axes[name] = (
                AxisDegradation(factor=factor, profile=self.profile, blur_fwhm=fwhm * factor)
                if factor > 1
                else AxisDegradation()
            )
        return Degradation(name="acquisition", **axes)


def default_acquisition(model: Degradation, lowest: float) -> Acquisition:
    """Assume an acquisition of a scan of which nothing is known.

    Args:
        model: The degradation that a model was trained for first.
        lowest: Least voxel of the scan, in the unit of the file.
    """
    if lowest < TOMOGRAPHY_THRESHOLD:
        return Acquisition("box", source="as for computed tomography, by its values")
    return Acquisition(model.depth.profile, source="the model's default: nothing is known of the scan")
