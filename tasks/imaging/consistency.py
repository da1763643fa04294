"""Data consistency: a restored volume, degraded again, must return the input; what it lacks is projected back.

With D the degradation, r the restored volume and b the coarse one, the correction adds `Dᵀ(DDᵀ + λ)⁻¹(b − Dr)`, the
smallest that explains b down to the damping λ (Tikhonov). D is separable, so one singular value decomposition
per axis, `D = USVᵀ`, gives it in closed form: `r + V·S/(S² + λ)·Uᵀ(b − Dr)`. What remains of the coefficients c of
`b − Dr` is `λ/(S² + λ)·c`: λ is chosen so that the residual just meets the tolerance (the discrepancy principle), and
fine voxels change no more than the input asks for.

Where the input is noisy, explaining it to the last bit would blow its noise up. What no fine volume could have put
there shows how noisy it is: the coefficients that D all but erases. Of each band of frequencies of `b − Dr`, only the
share is explained that the noise does not (an empirical Wiener filter), and λ is at least the variance of the noise
over that of the restored volume's error. With d a frequency of `b − Dr`, t the share of the input's noise n that r
still carries, and σ² its variance, `E[nd] = (1 − t)σ²`, so that the best linear estimate of the error that shows there
is `(1 − (1 − t)σ²/E[d²])·d`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, dctn, idctn
from scipy.ndimage import uniform_filter
from scipy.optimize import brentq

from configs.axes import AXES, NetworkShape
from configs.degradation import AxisDegradation, Degradation
from configs.errors import InputError
from tasks.imaging.degrade import coarse_shape, degrade
from tasks.imaging.noise import scan_noise
from tasks.imaging.resample import interpolation, resample
from tasks.imaging.separable import along
from tasks.machine.shared_memory import Windowed, blocks

TOLERANCE = 1e-4  # root mean square of the residual, in normalised intensity
MIN_SQUARED_SINGULAR = 1e-6  # squared singular values below this are not divided by: no volume is blown up by 1000
NOISE_COEFFICIENT_SHARE = 0.05  # of the coefficients: those that the degradation erases most show the noise
MAX_UNERASED_RATIO = 16.0  # of squared singular values: up to it no coefficient is erased, and none shows the noise
MAX_PLANE_VALUES = 1 << 16  # of a product of factors, about, that are computed at a time
BANDS, MIN_BAND = 8, 3  # bands of frequencies along each axis, over which power is averaged; frequencies in one
NETWORK_DETAIL = 0.02  # standard deviation of the detail that a network keeps apart from noise, in normalised intensity
ANATOMY = 0.002  # what sharp anatomy without noise leaves in those coefficients, in normalised intensity

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class AxisFactors:
    """The singular value decomposition of a degradation along one axis.

    Args:
        coarse_basis: U, `[coarse, rank]`.
        fine_basis: V, `[fine, rank]`.
        singular: S, `[rank]`.
    """

    coarse_basis: Array
    fine_basis: Array
    singular: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Correction:
    """Correction that makes a restored volume consistent with its input, stored on the coarse grid.

    Args:
        coefficients: In the fine bases of the degradation, float32, of the shape of the coarse volume.
        bases: The fine basis of each axis, `[fine, rank]`, or None where the axis stays.
        unexplained: Root mean square of the difference that remains.
    """

    coefficients: Array
    bases: tuple[Array | None, ...]
    unexplained: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the fine volume."""
        return tuple(
            size if basis is None else len(basis)
            for size, basis in zip(self.coefficients.shape, self.bases, strict=True)
        )

    def window(self, *rows: slice) -> Array:
        """Return what to add to a window of the restored volume, one slice of fine voxels per axis."""

        def growth(axis: int) -> float:
            start, stop, _ = rows[axis].indices(self.shape[axis])
            return (stop - start) / float(self.coefficients.shape[axis])

        # The axes that shrink come first: less is carried through the others.
        first, *others = sorted(range(3), key=growth)
        correction = self._product(first, rows[first])
        for axis in others:
            basis, part = self.bases[axis], rows[axis]
            if basis is None:
                correction = correction[(slice(None),) * axis + (part,)]
            else:
                correction = along(axis, basis[part], correction)
        return np.ascontiguousarray(correction)

    def _product(self, axis: int, part: slice) -> Array:
        """Return the product along an axis with some fine voxels of its basis, reading the coefficients by blocks."""
        basis = self.bases[axis]
        if basis is None:
            return Windowed(self.coefficients)[tuple(part if other == axis else slice(None) for other in range(3))]
        if axis == 0:
            products = (
                along(0, np.ascontiguousarray(basis[part, start : start + len(block)]), block)
                for start, block in blocks(self.coefficients)
            )
            return reduce(np.add, products)
        return np.concatenate([along(axis, basis[part], block) for _, block in blocks(self.coefficients)])


@dataclass(frozen=True)
class CorrectedVolume:
    """Result of a correction.

    Args:
        voxels: The corrected volume, float32.
        before: Root mean square of `b − Dr` that the restored volume had.
        after: The same of the corrected volume.
    """

    voxels: Array
    before: float
    after: float


def recipe_at(recipe: Degradation, fine: NetworkShape, coarse: NetworkShape) -> Degradation:
    """The recipe without its noise, stretched to lead from one shape to another.

    A scan that is super-resolved by another factor than the recipe's is taken to be blurred in proportion.
    """
    axes = {}
    for name, axis, size, wanted in zip(AXES, recipe.axes, fine, coarse, strict=True):
        factor = size / wanted
        blur = axis.blur_fwhm * factor / axis.factor if factor > 1 else 0.0
        axes[name] = axis.model_copy(update={"factor": max(factor, 1.0), "blur_fwhm": blur})
    return Degradation(name=recipe.name, **axes)


def axis_factors(shape: NetworkShape, recipe: Degradation) -> tuple[AxisFactors | None, ...]:
    """Decompose a degradation for a fine shape, network axes; None along an axis that it leaves alone."""
    return tuple(_factors(size, axis) for size, axis in zip(shape, recipe.axes, strict=True))


def axis_matrices(shape: NetworkShape, recipe: Degradation) -> tuple[Array | None, ...]:
    """The matrices, `[coarse, fine]`, of a degradation for a fine shape, network axes; None where an axis stays."""
    return tuple(_matrix(size, axis) for size, axis in zip(shape, recipe.axes, strict=True))


def correct(
    restored: Array, coarse: Array, recipe: Degradation, tolerance: float = TOLERANCE, noise: float = 0.0
) -> CorrectedVolume:
    """Make a restored volume consistent with its input.

    Args:
        restored: float32 `[depth, height, width]`, fine.
        coarse: float32 `[depth, height, width]`: the input, over the same field of view, in the same unit.
        recipe: What leads from fine to coarse; its factors give the shape of `coarse`. Its noise is left out.
        tolerance: Root mean square of `b − Dr` to reach, in the unit of the voxels; 0 asks for all that is possible.
        noise: Standard deviation of the input's noise, in normalised intensity; `noise_level` estimates it. The
            restored volume is taken to be a network's; for an interpolated one there is `consistent_interpolation`.

    Raises:
        InputError: The recipe does not lead from the one shape to the other.
    """
    shape = NetworkShape(*restored.shape)
    expected = coarse_shape(shape, recipe)
    if expected != coarse.shape:
        raise InputError(
            f"Cannot correct a volume of {restored.shape} voxels: {recipe.name} makes {expected} of it, and the"
            f" input has {coarse.shape}.",
            "Use the degradation that belongs to this scale.",
        )
    difference = residual(restored, coarse, recipe)
    correction = solve_correction(difference, shape, recipe, tolerance, noise)
    if correction is None:
        return CorrectedVolume(np.asarray(restored, np.float32), _rms(difference), _rms(difference))
    corrected = restored + correction.window(slice(None), slice(None), slice(None))
    return CorrectedVolume(corrected, _rms(difference), _rms(residual(corrected, coarse, recipe)))


def noise_level(coarse: Array, shape: NetworkShape, recipe: Degradation) -> float:
    """Estimate the standard deviation of an input's noise from what no fine volume could have put there.

    Args:
        coarse: float32, in normalised intensity, the axes those of the recipe.
        shape: Of the fine volume.
        recipe: What leads from fine to coarse.

    Returns:
        In normalised intensity. Where the degradation erases nothing, air and smooth tissue show it instead.
    """
    axes = axis_factors(shape, recipe)
    squared = squared_singular(axes, coarse.shape)
    if squared.max() < MAX_UNERASED_RATIO * squared.min():
        del squared
        return scan_noise(coarse)
    threshold = np.quantile(squared, NOISE_COEFFICIENT_SHARE, overwrite_input=True)
    erased = squared_singular(axes, coarse.shape, out=squared) <= threshold
    del squared
    faint = _in_bases(axes, coarse)[erased]
    return float(np.sqrt(max(0.0, _mean_square(faint) - ANATOMY**2)))


def solve_correction(
    difference: Array,
    shape: NetworkShape,
    recipe: Degradation,
    tolerance: float = TOLERANCE,
    noise: float = 0.0,
    passed: Sequence[NDArray[np.float64]] | None = None,
) -> Correction | None:
    """Find the smallest correction of a fine volume that its coarse version asks for.

    Its memory is at most six times that of the difference, and none of the fine volume.

    Args:
        difference: The input less the restored volume degraded again, float32, coarse.
        shape: Of the fine volume, along the same axes.
        recipe: What leads from fine to coarse.
        tolerance: Root mean square that may stay unexplained, in the unit of the voxels.
        noise: Standard deviation of the input's noise, in the unit of the voxels.
        passed: Share of the noise that the restored volume carries, for each frequency of the input's cosine transform
            along each axis; None for a volume that a network restored.

    Returns:
        The correction, or None if the difference is within the tolerance, or no more than noise.
    """
    before = _rms(difference)
    if before <= tolerance:
        return None
    axes = axis_factors(shape, recipe)
    coefficients = _in_bases(axes, difference)
    beyond = before**2 - _mean_square(coefficients)
    damping, explained = _damping(coefficients, axes, tolerance**2 - beyond), coefficients
    if noise:
        without, power = _without_noise(difference, noise, passed)
        if power <= tolerance**2:
            return None
        explained = _in_bases(axes, without)
        del without
        damping = max(damping, noise**2 * float(squared_singular(axes, difference.shape).mean()) / power)
    left = np.empty(coefficients.shape)
    for part, squared in _squared_by_planes(axes, left.shape):
        np.subtract(coefficients[part], explained[part] * (squared / (squared + damping)), out=left[part])
    unexplained = float(np.sqrt(np.mean(np.square(left, out=left)) + max(0.0, beyond)))
    del left
    found = np.empty(coefficients.shape, np.float32)
    for part, squared in _squared_by_planes(axes, found.shape):
        found[part] = explained[part] * (np.sqrt(squared) / (squared + damping)).astype(np.float32)
    return Correction(found, tuple(None if factors is None else factors.fine_basis for factors in axes), unexplained)


def interpolation_correction(
    coarse: Array, shape: NetworkShape, recipe: Degradation, noise: float = 0.0
) -> Correction | None:
    """Find what makes the interpolated coarse volume consistent with the coarse volume; the fine one is not computed.

    Args:
        coarse: float32, in normalised intensity, the axes those of the recipe.
        shape: Of the fine volume.
        recipe: What leads from fine to coarse.
        noise: Standard deviation of the coarse volume's noise, in normalised intensity.

    Returns:
        What to add to `resample(coarse, shape)`; None where that is nothing.
    """
    again, passed = coarse, [np.ones(size) for size in coarse.shape]
    for axis, (matrix, size) in enumerate(zip(axis_matrices(shape, recipe), shape, strict=True)):
        if matrix is not None:
            round_trip = matrix @ interpolation(coarse.shape[axis], size, "cubic").dense(0, size)
            again = along(axis, round_trip, again)
            passed[axis] = _passed(round_trip)
    difference = coarse - again
    del again
    return solve_correction(difference, shape, recipe, noise=noise, passed=passed)


def consistent_interpolation(coarse: Array, shape: NetworkShape, recipe: Degradation, noise: float = 0.0) -> Array:
    """Interpolate a coarse volume onto the fine grid and make it consistent; see `interpolation_correction`."""
    correction = interpolation_correction(coarse, shape, recipe, noise)
    interpolated = resample(coarse, shape)
    return interpolated if correction is None else interpolated + correction.window(*[slice(None)] * 3)


def residual(restored: Array, coarse: Array, recipe: Degradation) -> Array:
    """The input less the restored volume degraded again, without noise."""
    again = restored
    for axis, matrix in enumerate(axis_matrices(NetworkShape(*restored.shape), recipe)):
        again = again if matrix is None else along(axis, matrix, again)
    return coarse - again


def squared_singular(
    axes: Sequence[AxisFactors | None], sizes: Sequence[int], out: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """The squared singular values of the whole degradation, one per coefficient."""
    squared = np.empty(sizes) if out is None else out
    for part, planes in _squared_by_planes(axes, sizes):
        squared[part] = planes
    return squared


def _squared_by_planes(
    axes: Sequence[AxisFactors | None], sizes: Sequence[int]
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield the squared singular values of some planes after others, with their places along depth."""
    factors = [np.ones(size) if axis is None else axis.singular**2 for axis, size in zip(axes, sizes, strict=True)]
    return _outer_by_planes(factors)


def _outer_by_planes(factors: Sequence[NDArray[np.float64]]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield the outer product of a factor for each axis as some planes after others, with their places along depth."""
    depth, height, width = factors
    step = max(1, MAX_PLANE_VALUES // (len(height) * len(width)))
    for start in range(0, len(depth), step):
        part = slice(start, start + step)
        yield part, depth[part, None, None] * height[:, None] * width


def _without_noise(
    difference: Array, noise: float, passed: Sequence[NDArray[np.float64]] | None
) -> tuple[Array, float]:
    """Scale the frequencies of a difference to the share that noise does not explain.

    Returns:
        What is left of the difference, and the mean square of the error that shows in it.
    """
    spectrum = dctn(difference, norm="ortho")
    power = uniform_filter(
        np.square(spectrum), [max(MIN_BAND, size // BANDS) for size in spectrum.shape], mode="nearest"
    )
    error = np.empty(power.shape, np.float32 if passed is None else np.float64)
    for part, planes in _outer_by_planes([np.ones(size) for size in power.shape] if passed is None else passed):
        carried = _passed_by_network(noise) if passed is None else planes
        share = np.clip(1 - (1 - carried) * noise**2 / np.maximum(power[part], np.finfo(np.float32).tiny), 0, 1)
        spectrum[part] *= share.astype(np.float32)
        np.multiply(share, power[part], out=error[part])
    del power
    return idctn(spectrum, norm="ortho", overwrite_x=True), float(np.mean(error))


def _passed(round_trip: NDArray[np.floating]) -> NDArray[np.float64]:
    """The share of each frequency, `[coarse]`, that interpolation and degradation, `[coarse, coarse]`, let pass."""
    cosines = dct(np.eye(len(round_trip)), norm="ortho", axis=0)
    return np.asarray(np.clip(np.einsum("fi,ij,fj->f", cosines, round_trip, cosines, optimize=True), 0, 1))


def _passed_by_network(noise: float) -> float:
    """The share of noise that a network lets pass, as a Wiener filter does that keeps detail of a typical size."""
    return 1 / (1 + (noise / NETWORK_DETAIL) ** 2)


def _damping(coefficients: Array, axes: Sequence[AxisFactors | None], unexplained: float) -> float:
    """Find the damping that leaves a mean square of `unexplained`, or the smallest if that is out of reach."""
    low, high = np.log(MIN_SQUARED_SINGULAR), np.log(1e6)
    if unexplained <= 0:
        return MIN_SQUARED_SINGULAR
    power = np.empty(coefficients.shape)
    np.square(coefficients, out=power, dtype=np.float64)
    # As arguments: SciPy leaves a function in a cycle of garbage, and with it all that the function holds.
    given = power, np.empty(power.shape), axes, unexplained
    if _beyond(low, *given) >= 0:
        return MIN_SQUARED_SINGULAR
    return float(np.exp(brentq(_beyond, low, high, given, xtol=1e-4) if _beyond(high, *given) > 0 else high))


def _beyond(
    logarithm: float,
    power: NDArray[np.float64],
    left: NDArray[np.float64],
    axes: Sequence[AxisFactors | None],
    unexplained: float,
) -> float:
    """By how much the mean square that a damping leaves is beyond `unexplained`; `left` is overwritten."""
    damping = np.exp(logarithm)
    for part, squared in _squared_by_planes(axes, power.shape):
        np.divide(damping, squared + damping, out=left[part])
    flat = left.ravel()
    return float(np.einsum("i,i,i", power.ravel(), flat, flat)) / power.size - unexplained


@lru_cache(maxsize=32)
def _matrix(size: int, recipe: AxisDegradation) -> Array | None:
    if recipe == AxisDegradation():
        return None
    # What a degradation does to each unit impulse is its matrix, of whatever kind it is.
    return degrade(np.eye(size, dtype=np.float32)[:, :, None], Degradation(name="axis", depth=recipe))[:, :, 0]


@lru_cache(maxsize=32)
def _factors(size: int, recipe: AxisDegradation) -> AxisFactors | None:
    matrix = _matrix(size, recipe)
    if matrix is None:
        return None
    left, singular, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return AxisFactors(left.astype(np.float32), np.ascontiguousarray(right.T, dtype=np.float32), singular)


def _in_bases(axes: Sequence[AxisFactors | None], coarse: Array) -> Array:
    """The coefficients of a coarse volume in the coarse bases."""
    for axis, factors in enumerate(axes):
        if factors is not None:
            coarse = along(axis, factors.coarse_basis.T, coarse)
    return coarse


def _mean_square(voxels: NDArray[np.floating]) -> float:
    return float(np.mean(np.square(voxels, dtype=np.float64)))


def _rms(voxels: Array) -> float:
    return float(np.sqrt(_mean_square(voxels)))
