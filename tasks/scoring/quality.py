"""Artefact measures of a restored volume: stride-periodic noise and seams at shard borders.

All measures are ratios to the surroundings, in normalised voxels: 1 is sound at any contrast.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from tasks.scoring.metrics import foreground_mask
from tasks.sharding.plan import ShardPlan
from tasks.volume.grid import NetworkAxes
from tasks.volume.scan import Voxels

LINE_VOXELS = 4_000_000  # lines with this many voxels together are enough for a mean
NEIGHBOURS = 8  # planes on either side that a border is compared with
BATCH_VOXELS = 500_000
MIN_LINE = 48  # differences along an axis: fewer leave nothing around a multiple of 1/stride to compare it with
MIN_VOXELS = 64  # of the foreground, for a step to be measured
EDGE = 0.05  # normalised difference to which an edge of the anatomy counts
UNSEEN = 0.0005  # normalised amplitude of a pattern that nobody sees: an eighth of a step of a display
PERIODIC, SEAM = 1.6, 1.5  # ratios that no sound volume reaches: tests/tasks/test_quality.py


@dataclass(frozen=True)
class Spectrum:
    """Roughness of a volume along one axis, by frequency.

    Args:
        axis: 0, 1 or 2.
        stride: Total stride of the network along that axis.
        frequencies: Cycles per voxel, up to 0.5.
        amplitudes: Of its second differences, root mean square over lines.
        peak: The largest amplitude at a multiple of 1/stride, over the median amplitude around it, or over that of a
            pattern too weak to be seen where this is larger; 0 for stride 1.
    """

    axis: int
    stride: int
    frequencies: NDArray[np.floating]
    amplitudes: NDArray[np.floating]
    peak: float


@dataclass(frozen=True)
class Seam:
    """The step across one border of shards.

    Args:
        axis: 0, 1 or 2.
        place: The border lies before this voxel.
        ratio: The step across it over the median of the steps around.
        before: The same ratio before restoring: anatomy has its own steps.
    """

    axis: int
    place: int
    ratio: float
    before: float

    @property
    def excess(self) -> float:
        """Ratio of the step after restoring to that before; 1 where there is no seam."""
        return self.ratio / self.before


def spectrum(voxels: Voxels, axis: int, stride: int) -> Spectrum:
    """Find stride-periodic noise, the checkerboard of transposed convolutions.

    Measures the amplitude spectrum of second differences along the axis, root mean square over all lines. Anatomy
    gives a smooth curve; a pattern that repeats with the stride stands out at multiples of 1/stride.

    Args:
        voxels: `[i, j, k]`.
        axis: Along which.
        stride: Of the network along that axis.
    """
    lines = _lines(voxels, axis)
    size = max(0, lines.shape[1] - 2)
    if size < MIN_LINE or not lines.any():
        return Spectrum(axis, stride, np.zeros(1), np.zeros(1), 0.0)
    # Line by line in batches: the transform is complex and twice as wide.
    power = np.zeros(size // 2 + 1, np.float64)
    for batch in np.array_split(lines, max(1, lines.size // BATCH_VOXELS)):
        power += (np.abs(np.fft.rfft(np.diff(batch, 2, axis=1) * np.hanning(size))) ** 2).sum(axis=0)
    amplitudes = np.sqrt(power / len(lines)) * 2 / size
    frequencies = np.fft.rfftfreq(size)
    orders = np.arange(1, stride // 2 + 1) / stride
    # A wave of amplitude a has second differences of a (2 - 2 cos), of which the window keeps half.
    unseen = UNSEEN * (1 - np.cos(2 * np.pi * orders))
    peaks = [_peak(amplitudes, round(order * size), least) for order, least in zip(orders, unseen, strict=True)]
    return Spectrum(axis, stride, frequencies, amplitudes, max(peaks, default=0.0))


def seams(voxels: Voxels, before: Voxels, borders: Iterable[tuple[int, int]]) -> list[Seam]:
    """Measure the step across borders of shards.

    The step between two planes is their difference minus the mean of the differences before and after, so that slopes
    do not count: its absolute value, averaged over the foreground; edges of the anatomy count up to `EDGE`.

    Args:
        voxels: The restored volume, `[i, j, k]`.
        before: The volume before restoring, on the same grid.
        borders: Axis, and the voxel before which the border lies.
    """
    wanted = set(borders)
    found = []
    for axis, place in sorted(wanted):
        near = [
            plane
            for plane in range(place - NEIGHBOURS, place + NEIGHBOURS + 1)
            if abs(plane - place) > 1 and (axis, plane) not in wanted
        ]
        ratios = [_step_ratio(np.moveaxis(volume, axis, 0), place, near) for volume in (voxels, before)]
        if ratios[0] and ratios[1]:
            found.append(Seam(axis, place, ratios[0], ratios[1]))
    return found


def _step_ratio(planes: Voxels, place: int, near: Sequence[int]) -> float | None:
    step, others = _step(planes, place), [_step(planes, plane) for plane in near]
    around = [other for other in others if other is not None]
    background = float(np.median(around)) if around else 0.0
    return None if step is None or background == 0 else step / background


def _step(planes: Voxels, place: int) -> float | None:
    """Return the step before a plane; None where too little foreground or no plane lies on either side."""
    if not 2 <= place < len(planes) - 1:
        return None
    before, last, first, after = (planes[place + offset] for offset in (-2, -1, 0, 1))
    bend = np.abs((first - last) - ((last - before) + (after - first)) / 2)[
        foreground_mask(last) & foreground_mask(first)
    ]
    return float(np.minimum(bend, EDGE).mean()) if bend.size >= MIN_VOXELS else None


def shard_borders(plan: ShardPlan, axes: NetworkAxes) -> list[tuple[int, int]]:
    """Return the borders between the shards of a plan in file axes: axis, and the voxel before which it lies."""
    borders = set()
    for shard in plan.shards:
        for axis, (start, _) in enumerate(shard.core):
            if start:
                place = plan.target_shape[axis] - start if axes.flipped[axis] else start
                borders.add((axes.order[axis], place))
    return sorted(borders)


def quality_warnings(spectra: Iterable[Spectrum], found: Iterable[Seam]) -> list[str]:
    """List the measures that no sound volume reaches."""
    warnings = [
        f"periodic noise along {'ijk'[one.axis]}: {one.peak:.0f}x the background at a multiple of 1/{one.stride}"
        for one in spectra
        if one.peak > PERIODIC
    ]
    return warnings + [
        f"a seam along {'ijk'[seam.axis]} before voxel {seam.place}: {seam.excess:.2f}x the step before restoring"
        for seam in found
        if seam.excess > SEAM
    ]


def _peak(amplitudes: NDArray[np.floating], at: int, least: float) -> float:
    """Return the amplitude of a line over the median around it, which counts as `least` at least."""
    reach = max(6, amplitudes.size // 20)
    around = np.concatenate([amplitudes[max(2, at - reach) : max(2, at - 2)], amplitudes[at + 3 : at + reach + 1]])
    line = amplitudes[max(0, at - 1) : at + 2]
    background = max(float(np.median(around)), least) if around.size else 0.0
    return float(line.max() / background) if line.size and background > 0 else 0.0


def _lines(voxels: Voxels, axis: int) -> Voxels:
    """Return a bounded number of evenly spaced lines along an axis, `[line, voxel]`."""
    step = ceil((voxels.size / LINE_VOXELS) ** 0.5)
    thinned = np.moveaxis(voxels, axis, 2)[::step, ::step]
    return thinned.reshape(-1, voxels.shape[axis])
