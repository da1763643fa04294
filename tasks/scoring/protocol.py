"""The protocol of every score: degrade a reference, restore it on its own grid, compare inside the foreground."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from configs.axes import FileShape
from configs.data import HeldOut
from configs.degradation import Degradation
from configs.errors import InputError
from tasks.imaging.consistency import CorrectedVolume, consistent_interpolation, correct
from tasks.imaging.degrade import degrade
from tasks.imaging.resample import Interpolation, resample
from tasks.scoring.metrics import foreground_mask, nmse, psnr, ssim
from tasks.volume.grid import Grid, NetworkAxes, covering_grid, network_axes
from tasks.volume.intensity import CLIP, Intensity, find_intensity, normalise, restore
from tasks.volume.nifti import Volume

Slab = tuple[slice, slice, slice]
WHOLE: Slab = (slice(None), slice(None), slice(None))
# Titles of fields of `Score`.
BASELINES = {"corrected": "cubic with correction", "cubic": "cubic", "trilinear": "trilinear"}
SSIM_MARGIN = 8  # voxels by which the window of SSIM may extend beyond a slab


@dataclass(frozen=True)
class Score:
    """One measure of a restored volume and of its baselines.

    Args:
        restored: The restored volume.
        corrected: Cubic interpolation, made consistent with the coarse volume by the recipe that made it.
        cubic: Cubic interpolation.
        trilinear: Trilinear interpolation.
    """

    restored: float
    corrected: float
    cubic: float
    trilinear: float

    @property
    def best_baseline(self) -> str:
        """The baseline with the highest value: a key of `BASELINES`."""
        return max(BASELINES, key=lambda name: float(getattr(self, name)))

    @property
    def gain(self) -> float:
        """Value of the restored volume above that of the best baseline."""
        return self.restored - float(getattr(self, self.best_baseline))


@dataclass(frozen=True)
class Scores:
    """Every measure of a restored volume: PSNR in dB with peak 1, SSIM, and squared error over squared truth."""

    psnr: Score
    ssim: Score
    nmse: Score


@dataclass(frozen=True)
class DegradedReference:
    """A reference and its coarse volume.

    Args:
        reference: The truth; its voxels are clipped as the protocol says.
        padded: The grid of the reference, continued at the end of each axis to whole blocks of the degradation.
        coarse: The degraded volume, over the field of view of `padded`.
        recipe: That made the coarse volume.
        axes: Between file axes and network axes.
        intensity: Of the reference, for scoring.
    """

    reference: Volume
    padded: Grid
    coarse: Volume
    recipe: Degradation
    axes: NetworkAxes
    intensity: Intensity

    def cropped(self, voxels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Crop a volume on the padded grid, `(i, j, k)`, to the grid of the reference."""
        i, j, k = self.reference.grid.shape
        return voxels[:i, :j, :k]

    def baseline(self, order: Interpolation) -> NDArray[np.float32]:
        """Interpolate the coarse volume onto the grid of the reference, `(i, j, k)`."""
        return self.cropped(resample(self.coarse.voxels, self.padded.shape, order))

    def corrected(self, restored: NDArray[np.float32]) -> CorrectedVolume:
        """Make a restored volume consistent with the coarse one; see `tasks.imaging.consistency.correct`.

        Args:
            restored: On the padded grid, `(i, j, k)`, in the unit of the file.

        Returns:
            The corrected volume likewise; its errors are in normalised intensity.
        """
        found = find_intensity(self.coarse.voxels)
        fine, coarse = (self.axes.to_network(normalise(voxels, found)) for voxels in (restored, self.coarse.voxels))
        done = correct(fine, coarse, self.recipe, noise=self._noise(found))
        return replace(done, voxels=restore(self.axes.to_file(done.voxels), found))

    def corrected_baseline(self) -> NDArray[np.float32]:
        """Interpolate as `baseline` does by "cubic", and make the result consistent with the coarse volume."""
        found = find_intensity(self.coarse.voxels)
        coarse = self.axes.to_network(normalise(self.coarse.voxels, found))
        shape = self.axes.network_shape(self.padded.shape)
        done = consistent_interpolation(coarse, shape, self.recipe, self._noise(found))
        return self.cropped(restore(self.axes.to_file(done), found))

    def _noise(self, found: Intensity) -> float:
        """The noise of the coarse volume in its own normalised intensity: the recipe gives it in the reference's."""
        return self.recipe.noise.sigma * (self.intensity.high - self.intensity.low) / (found.high - found.low)

    def scores(
        self, restored: NDArray[np.float32], slab: Slab = WHOLE, mask: NDArray[np.bool_] | None = None
    ) -> Scores:
        """Score a restored volume and its baselines.

        Args:
            restored: On the grid of the reference, `(i, j, k)`, in the unit of the file.
            slab: The part of the grid that counts.
            mask: Voxels that count, of the reference's shape; those of the foreground by default.

        Raises:
            InputError: No voxel counts.
        """
        window = tuple(
            slice(max(0, start - SSIM_MARGIN), stop + SSIM_MARGIN)
            for start, stop, _ in (part.indices(size) for part, size in zip(slab, restored.shape, strict=True))
        )
        truth = normalise(self.reference.voxels[window], self.intensity)
        counts = np.zeros(restored.shape, bool)
        counts[slab] = True
        within = (foreground_mask(truth) if mask is None else mask[window]) & counts[window]
        if not within.any():
            raise InputError(
                "Cannot score: no voxel of the part to score is "
                + ("over 5 % of the intensity range." if mask is None else "in the mask.")
            )
        estimates = [
            normalise(volume[window], self.intensity)
            for volume in (restored, self.corrected_baseline(), self.baseline("cubic"), self.baseline("linear"))
        ]
        return Scores(
            *(Score(*(measure(truth, estimate, within) for estimate in estimates)) for measure in (psnr, ssim, nmse))
        )


def degraded_reference(volume: Volume, recipe: Degradation, seed: int = 0) -> DegradedReference:
    """Degrade a reference for training or scoring.

    A size that an integer factor does not divide is continued by edge values to whole blocks, so that every coarse
    voxel is the mean of the same number of fine ones; restored volumes are cropped again.

    Args:
        volume: The reference.
        recipe: From fine to coarse.
        seed: Of the recipe's noise.

    Raises:
        InputError: The voxels of the volume are all equal.
    """
    axes = network_axes(volume.grid)
    intensity = find_intensity(volume.voxels)
    limit = np.float32(intensity.low + CLIP * (intensity.high - intensity.low))
    reference = Volume(np.clip(volume.voxels, np.float32(intensity.low), limit), volume.grid, volume.header)
    whole_blocks = (
        -(-size // int(factor)) * int(factor) if factor == int(factor) else size
        for size, factor in zip(volume.grid.shape, axes.of_network(recipe.scale), strict=True)
    )
    padded = Grid(FileShape(*whole_blocks), volume.grid.affine)
    normalised = axes.to_network(normalise(pad_to(reference.voxels, padded.shape), intensity))
    coarse = restore(axes.to_file(degrade(normalised, recipe, seed)), intensity)
    grid = covering_grid(padded, FileShape(*coarse.shape))
    return DegradedReference(reference, padded, Volume(coarse, grid), recipe, axes, intensity)


def pad_to(voxels: NDArray[np.float32], shape: FileShape) -> NDArray[np.float32]:
    """Continue a volume by its edge values, at the end of each axis, to a larger shape."""
    return np.pad(voxels, [(0, whole - size) for whole, size in zip(shape, voxels.shape, strict=True)], mode="edge")


def held_out_slabs(shape: FileShape, held_out: HeldOut | None) -> tuple[Slab, Slab]:
    """Divide a grid into the slab that trains and the slab that is scored, with the gap between them.

    Args:
        shape: Voxels along (i, j, k).
        held_out: The slab to score; None trains and scores on the whole.

    Returns:
        The slab that trains, the larger of what remains on either side, and the slab that is scored.

    >>> train, score = held_out_slabs(FileShape(9, 90, 9), HeldOut(axis=1, start=0.5, stop=1, gap=5))
    >>> train[1], score[1]
    (slice(0, 40, None), slice(45, 90, None))
    """
    if held_out is None:
        return WHOLE, WHOLE
    before, after = training_sides(shape, held_out)
    size = shape[held_out.axis]
    sizes = [len(range(size)[side[held_out.axis]]) for side in (before, after)]
    scored = slice(round(held_out.start * size), round(held_out.stop * size))
    return before if sizes[0] >= sizes[1] else after, _across(held_out.axis, scored)


def training_sides(shape: FileShape, held_out: HeldOut) -> tuple[Slab, Slab]:
    """Find what remains of a grid on either side of the slab that is scored, without the gap; one may be empty."""
    size = shape[held_out.axis]
    start, stop = (round(end * size) for end in (held_out.start, held_out.stop))
    before, after = slice(0, max(0, start - held_out.gap)), slice(min(size, stop + held_out.gap), size)
    return _across(held_out.axis, before), _across(held_out.axis, after)


def _across(axis: int, part: slice) -> Slab:
    i, j, k = (part if other == axis else whole for other, whole in enumerate(WHOLE))
    return i, j, k
