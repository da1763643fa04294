"""The protocol of every score: degrade a reference, restore it on its own grid, compare inside the foreground."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from configs.axes import FileShape
from configs.data import HeldOut
from configs.degradation import Degradation
from configs.errors import InputError
from tasks.imaging.consistency import Correction, correct
from tasks.imaging.degrade import degrade
from tasks.imaging.resample import resample
from tasks.scoring.metrics import foreground_mask, nmse, psnr, ssim
from tasks.volume.grid import Grid, NetworkAxes, covering_grid, network_axes
from tasks.volume.intensity import CLIP, Intensity, find_intensity, normalise, restore
from tasks.volume.nifti import Volume

Slab = tuple[slice, slice, slice]
WHOLE: Slab = (slice(None), slice(None), slice(None))
SSIM_MARGIN = 8  # voxels that the window of SSIM may reach beyond a slab


@dataclass(frozen=True)
class Score:
    """One measure of a restored volume and of its baselines."""

    restored: float
    cubic: float
    trilinear: float


@dataclass(frozen=True)
class Scores:
    """Every measure of a restored volume: PSNR in dB with peak 1, SSIM, and squared error over squared truth."""

    psnr: Score
    ssim: Score
    nmse: Score


@dataclass(frozen=True)
class DegradedReference:
    """A reference and what the degradation left of it.

    Args:
        reference: The truth; its voxels are clipped as the protocol says.
        padded: The grid of the reference, continued at the end of each axis to whole blocks of the degradation.
        coarse: The degraded volume, over the field of view of `padded`.
        axes: Between file axes and network axes.
        intensity: Of the reference, for scoring.
    """

    reference: Volume
    padded: Grid
    coarse: Volume
    axes: NetworkAxes
    intensity: Intensity

    def cropped(self, voxels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cut a volume on the padded grid, `(i, j, k)`, to the grid of the reference."""
        i, j, k = self.reference.grid.shape
        return voxels[:i, :j, :k]

    def baseline(self, order: str) -> NDArray[np.float32]:
        """The coarse volume interpolated onto the grid of the reference, `(i, j, k)`; order "cubic" or "linear"."""
        return self.cropped(self.padded_baseline(order))

    def padded_baseline(self, order: str) -> NDArray[np.float32]:
        """The same on the padded grid."""
        return resample(self.coarse.voxels, self.padded.shape, "cubic" if order == "cubic" else "linear")

    def corrected(self, restored: NDArray[np.float32], recipe: Degradation) -> Correction:
        """Make a restored volume consistent with the coarse one; see `tasks.imaging.consistency.correct`.

        Args:
            restored: On the padded grid, `(i, j, k)`, in the unit of the file.
            recipe: What the coarse volume was made by.

        Returns:
            The corrected volume likewise; its errors are in normalised intensity.
        """
        found = find_intensity(self.coarse.voxels)
        fine, coarse = (self.axes.to_network(normalise(voxels, found)) for voxels in (restored, self.coarse.voxels))
        # The degradation is ours: its noise need not be estimated.
        done = correct(fine, coarse, recipe, noise=recipe.noise.sigma / (found.high - found.low))
        return replace(done, voxels=restore(self.axes.to_file(done.voxels), found))

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
        estimates = {
            name: normalise(volume[window], self.intensity)
            for name, volume in {
                "restored": restored,
                "cubic": self.baseline("cubic"),
                "trilinear": self.baseline("linear"),
            }.items()
        }
        by_measure = (
            Score(**{name: measure(truth, estimate, within) for name, estimate in estimates.items()})
            for measure in (psnr, ssim, nmse)
        )
        return Scores(*by_measure)


def degraded_reference(volume: Volume, recipe: Degradation, seed: int = 0) -> DegradedReference:
    """Degrade a reference for training or scoring.

    A size that a whole factor does not divide is continued by edge values to whole blocks, so that every coarse voxel
    is the mean of as many fine ones; what is restored is cropped again.

    Args:
        volume: The reference.
        recipe: From fine to coarse.
        seed: Of the recipe's noise.

    Returns:
        The reference with its coarse volume.

    Raises:
        InputError: The volume shows nothing.
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
    edges = [(0, whole - size) for whole, size in zip(padded.shape, volume.grid.shape, strict=True)]
    fine = axes.to_network(np.pad(reference.voxels, edges, mode="edge"))
    coarse = axes.to_file(degrade(fine, recipe, seed))
    grid = covering_grid(padded, FileShape(*coarse.shape))
    return DegradedReference(reference, padded, Volume(coarse, grid), axes, intensity)


def held_out_slabs(shape: FileShape, held_out: HeldOut | None) -> tuple[Slab, Slab]:
    """Cut a grid into what trains and what is scored, with the gap between them.

    Args:
        shape: Voxels along (i, j, k).
        held_out: The slab to score; None trains and scores on the whole.

    Returns:
        The slab that trains, the larger of what remains on either side, and the slab that is scored.

    >>> train, score = held_out_slabs(FileShape(9, 90, 9), HeldOut(axis=1, start=0.5, stop=1, gap=5))
    >>> train[1], score[1]
    (slice(0, 40, None), slice(45, 90, None))
    """
    whole = (slice(None), slice(None), slice(None))
    if held_out is None:
        return whole, whole
    size = shape[held_out.axis]
    start, stop = round(held_out.start * size), round(held_out.stop * size)
    before, after = slice(0, max(0, start - held_out.gap)), slice(min(size, stop + held_out.gap), size)
    larger = before if before.stop >= after.stop - after.start else after

    def across(part: slice) -> Slab:
        i, j, k = (part if axis == held_out.axis else slice(None) for axis in range(3))
        return i, j, k

    return across(larger), across(slice(start, stop))
