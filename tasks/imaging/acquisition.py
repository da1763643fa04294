"""The acquisition of a scan: the steps from tissue to voxels, as far as they are known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.axes import NetworkShape, triple
from configs.degradation import AxisDegradation, Degradation, Profile
from tasks.imaging.through_plane import ThroughPlane

Three = tuple[float, float, float]

TOMOGRAPHY_THRESHOLD = -200.0  # Hounsfield units, between fat and air; magnitudes of MR are not negative
MIN_GAP = 0.01  # of the slice thickness: less is rounding
ZERO_FILLING_RANGE = (1.1, 2.5)
MIN_POWER = 1e-14  # of the largest: below it power is rounding
# Edges in spectra: frequencies on each side that show one; its height in the logarithm of the power, and in standard
# errors, alone or with one of another axis at the same place; the scatter that a spectrum has at least. On the template
# and on synthetic anatomy they find nine of ten edges in noise, and none where there is none.
MIN_SIDE, MAX_SIDE = 3, 6
MIN_EDGE_HEIGHT, MIN_EDGE_CLARITY, MIN_SHARED_CLARITY, MIN_SCATTER = 0.4, 4.0, 2.0, 0.1
SAME_FILLING = 0.05
GUESS_CERTAINTY = 0.75  # least error over all acquisitions that are mistaken for the default, on synthetic anatomy
# Slices that do not show their profile are fewer than the networks have seen; those that do are right in nine of ten.
THICK_GUESS_CERTAINTY, SHOWN_CERTAINTY = 0.5, 0.9
NOISE_OF_FULL_WEIGHT = 0.05  # in normalised intensity
WORDS: dict[Profile, str] = {"kspace": "k-space truncation", "box": "box", "gaussian": "Gaussian profile"}


@dataclass(frozen=True)
class Acquisition:
    """Knowledge of an acquisition.

    Args:
        profile: As in `configs.degradation.AxisDegradation`, along every axis that is super-resolved.
        blur: FWHM of a Gaussian blur that comes on top, in voxels of the scan, along depth, height and width.
        zero_filling: Reconstructed over acquired samples of k-space along depth, height and width; where it is over 1
            the profile is "kspace".
        gap: Share of the slice distance that no slice holds.
        source: Where the knowledge comes from, in words.
        certainty: Weight of what a network adds to the interpolated scan, where that has no noise.
        known: Whether the user or the scanner states it, or the slices show it, so that a network for it alone may
            restore the scan: such a network is no worse than one for all where slices have gaps or a Gaussian profile.
    """

    profile: Profile
    blur: Three = (0.0, 0.0, 0.0)
    zero_filling: Three = (1.0, 1.0, 1.0)
    gap: float = 0.0
    source: str = "given"
    certainty: float = 1.0
    known: bool = True

    def __str__(self) -> str:
        """Describe it, as in `k-space truncation (given)`.

        >>> str(Acquisition("box", (0.5, 0.5, 0.5)))
        'box, blurred by 0.5 x 0.5 x 0.5 voxels FWHM along depth, height and width (given)'
        """
        found = WORDS[self.profile]
        if any(self.blur):
            found += f", blurred by {_by(self.blur)} voxels FWHM along depth, height and width"
        if max(self.zero_filling) > 1:
            found += f", zero-filled by {_by(self.zero_filling)} along depth, height and width"
        if self.gap:
            found += f", {self.gap:.0%} of the slice distance in gaps"
        return f"{found} ({self.source})"

    def degradation(self, fine: NetworkShape, coarse: NetworkShape) -> Degradation:
        """Return the degradation that leads from a target grid to the scan.

        Args:
            fine: Shape of the target grid.
            coarse: Shape of the scan, no larger along any axis.
        """
        axes = {}
        axes_known = zip(NetworkShape._fields, fine, coarse, self.blur, self.zero_filling, strict=True)
        for name, size, wanted, fwhm, filling in axes_known:
            factor = size / wanted
            profile = "kspace" if filling > 1 else self.profile
            gap = self.gap if name == "depth" and profile != "kspace" else 0.0
            axes[name] = (
                AxisDegradation(factor=factor, profile=profile, blur_fwhm=fwhm * factor, zero_filling=filling, gap=gap)
                if factor > 1
                else AxisDegradation()
            )
        return Degradation(name="acquisition", **axes)


@dataclass(frozen=True)
class ScannerRecord:
    """The part of a BIDS sidecar that concerns an acquisition.

    Args:
        slice_thickness: In mm.
        encoded_across: Whether the slices were encoded in k-space too, as in 3D acquisitions.
    """

    slice_thickness: float | None = None
    encoded_across: bool | None = None


def slice_gap(thickness: float, distance: float) -> float:
    """Return the share of the slice distance that no slice holds; 0 where slices touch or overlap.

    >>> slice_gap(3, 4)
    0.25
    """
    return max(0.0, 1 - thickness / distance) if distance > thickness * (1 + MIN_GAP) else 0.0


def default_acquisition(
    model: Degradation,
    lowest: float,
    spectra: Sequence[NDArray[np.float64]] = (),
    through: ThroughPlane | None = None,
    record: ScannerRecord | None = None,
    slice_distance: float = 1.0,
) -> Acquisition:
    """Assume an acquisition of a scan of which the user says nothing, by its sidecar and its voxels.

    Args:
        model: The degradation that a model was trained for first.
        lowest: Least voxel of the scan, in the unit of the file.
        spectra: Mean power of lines along depth, height and width, for each frequency from 0 to Nyquist.
        through: Slice profile, if the voxels show it; only for a model of thick slices.
        record: What the scanner recorded; goes before what the voxels show.
        slice_distance: In mm.
    """
    filled = zero_filling(spectra) if spectra else (1.0, 1.0, 1.0)
    if max(filled) > 1:
        source = "by an edge in the scan's spectrum"
        return Acquisition(model.depth.profile, zero_filling=filled, source=source, known=False)
    if lowest < TOMOGRAPHY_THRESHOLD and model.is_isotropic:
        return Acquisition("box", source="as for computed tomography, by its values", known=False)
    thick, record = not model.is_isotropic, record or ScannerRecord()
    if thick and record.encoded_across:
        return Acquisition("kspace", source="by the sidecar: a 3D acquisition")
    if thick and record.slice_thickness is not None:
        shown: Profile = "gaussian" if through is not None and through.profile == "gaussian" else "box"
        gap = slice_gap(record.slice_thickness, slice_distance)
        return Acquisition(shown, gap=gap, source=f"by the sidecar: slices of {record.slice_thickness:g} mm")
    if through is not None and thick:
        found = f"across the slices against within them: FWHM {through.fwhm:.2g} ± {through.uncertainty:.2g} slices"
        return Acquisition(through.profile, source=f"by the detail {found}", certainty=SHOWN_CERTAINTY)
    nothing = "the model's default: nothing is known of the scan"
    guess = THICK_GUESS_CERTAINTY if thick else GUESS_CERTAINTY
    return Acquisition(model.depth.profile, source=nothing, certainty=guess, known=False)


def detail_weight(certainty: float, noise: float) -> float:
    """Return the weight of what a network adds to the interpolated scan.

    A wrong acquisition misleads a network the more, the less it has to do against noise.

    Args:
        certainty: Of the acquisition, as in `Acquisition`.
        noise: Standard deviation of the noise of the scan, in normalised intensity.

    >>> detail_weight(0.75, 0.0), detail_weight(0.75, 0.05)
    (0.75, 1.0)
    """
    return 1 - (1 - certainty) * max(0.0, 1 - noise / NOISE_OF_FULL_WEIGHT)


def zero_filling(spectra: Sequence[NDArray[np.float64]]) -> Three:
    """Find by how much k-space was extended with zeros: the spectrum drops to the noise at an edge.

    Axes are often extended alike, so an edge counts for more where another axis has one at the same place.

    Args:
        spectra: Mean power of lines along each axis of a scan, for each frequency from 0 to Nyquist.

    Returns:
        Reconstructed over acquired samples along each axis; 1 where there is no edge, or noise hides it.
    """
    edges = [_edges(spectrum) for spectrum in spectra]

    def clearest(axis: int) -> float:
        best, most = 1.0, MIN_EDGE_CLARITY
        others = [edge for other, found in enumerate(edges) if other != axis for edge in found]
        for filling, clarity in edges[axis]:
            # Stouffer's sum of two independent standard scores.
            shared = [(clarity + more) / np.sqrt(2) for same, more in others if abs(same / filling - 1) < SAME_FILLING]
            if (support := max([clarity, *shared])) > most:
                best, most = filling, support
        return best

    return triple(map(clearest, range(3)))


def _edges(spectrum: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Find where a spectrum drops: reconstructed over acquired samples, and the height in standard errors.

    On each side of a frequency a line is fitted to the logarithm of the power; the height is the distance between them.
    """
    if not spectrum.size:
        return []
    power = np.log(spectrum + MIN_POWER * spectrum.max() + np.finfo(np.float64).tiny)
    nyquist = len(power) - 1
    low, high = ZERO_FILLING_RANGE
    found = []
    for last in range(max(MIN_SIDE, round(nyquist / high)), min(round(nyquist / low), nyquist - MIN_SIDE)):
        places = np.arange(max(1, last + 1 - MAX_SIDE), min(nyquist, last + 1 + MAX_SIDE))
        offsets, beyond = places - last - 0.5, places > last
        lines = np.stack([np.ones_like(offsets), offsets, beyond, beyond * offsets], axis=1)
        solve = np.linalg.pinv(lines)
        fitted = solve @ power[places]
        scatter = np.sum(np.square(power[places] - lines @ fitted)) / max(1, len(places) - lines.shape[1])
        height = -float(fitted[2])
        clarity = height / float(np.sqrt(np.sum(np.square(solve[2])) * (scatter + MIN_SCATTER**2)))
        if height > MIN_EDGE_HEIGHT and clarity > MIN_SHARED_CLARITY:
            found.append((nyquist / (last + 0.5), clarity))
    return found


def _by(numbers: Three) -> str:
    return " x ".join(f"{number:.3g}" for number in numbers)
