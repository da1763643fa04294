"""Fine to coarse by a recipe: what the scores and the training are measured against."""

import numpy as np
from numpy.typing import NDArray

from configs.axes import NetworkShape
from configs.degradation import AxisDegradation, Degradation, Noise
from tasks.imaging.separable import AxisMap, apply_map
from tasks.volume.grid import scaled_shape

FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))
TRUNCATE = 4.0  # standard deviations at which a Gaussian ends, as in scipy.ndimage


def degrade(voxels: NDArray[np.float32], recipe: Degradation, seed: int = 0) -> NDArray[np.float32]:
    """Make the coarse volume that a worse scan would have given.

    Args:
        voxels: float32 `[depth, height, width]`, fine.
        recipe: What happens along each axis, and the noise.
        seed: Of the noise.

    Returns:
        float32 `[depth, height, width]`, `coarse_shape(voxels.shape, recipe)`, over the same field of view. Edge values
        are extended (k-space truncation takes the volume as periodic instead). A constant stays that constant.
    """
    shape = coarse_shape(NetworkShape(*voxels.shape), recipe)
    coarse = np.ascontiguousarray(voxels, dtype=np.float32)
    for axis, (recipe_axis, wanted) in enumerate(zip(recipe.axes, shape, strict=True)):
        for mapping in axis_maps(coarse.shape[axis], wanted, recipe_axis):
            coarse = apply_map(coarse, axis, mapping, (0, len(mapping.first)))
        if recipe_axis.profile == "kspace":
            coarse = _truncate_kspace(coarse, axis, wanted, recipe_axis)
    return _add_noise(coarse, recipe.noise, seed)


def coarse_shape(shape: NetworkShape, recipe: Degradation) -> NetworkShape:
    """Return the shape of `degrade` for a fine shape, network axes.

    >>> from configs.degradation import named_degradation
    >>> coarse_shape(NetworkShape(16, 112, 111), named_degradation("iso2x"))
    NetworkShape(depth=8, height=56, width=56)
    """
    depth, height, width = (1 / factor for factor in recipe.scale)
    return scaled_shape(shape, (depth, height, width))


def axis_maps(size: int, wanted: int, recipe: AxisDegradation) -> list[AxisMap]:
    """Return the maps along one axis, in order: the blur, then the profile, without those that change nothing."""
    maps = [blur(size, recipe.blur_fwhm)] if recipe.blur_fwhm > 0 else []
    if recipe.profile != "kspace" and (recipe.factor > 1 or recipe.gap > 0):
        # Nothing thinner than one fine voxel can be seen in the fine volume.
        thickness = max(size / wanted * (1 - recipe.gap), 1.0)
        maps.append((box if recipe.profile == "box" else gaussian)(size, wanted, thickness))
    return maps


def blur(size: int, fwhm: float) -> AxisMap:
    """Return the Gaussian blur that `scipy.ndimage.gaussian_filter1d` computes with mode "nearest"."""
    return gaussian(size, size, fwhm)


def gaussian(size: int, wanted: int, fwhm: float) -> AxisMap:
    """Return the map whose outputs gather inputs by a Gaussian sampled at their centres."""
    sigma = fwhm / FWHM_PER_SIGMA
    radius = int(TRUNCATE * sigma + 0.5)
    centres = _centres(size, wanted)
    nearest = np.floor(centres + 0.5).astype(np.int64)
    taps = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * ((nearest[:, None] + taps - centres[:, None]) / sigma) ** 2)
    return AxisMap(size, nearest - radius, _centred(weights, nearest - radius, centres))


def box(size: int, wanted: int, thickness: float) -> AxisMap:
    """Return the map whose outputs are means over `thickness` fine voxels, parts of voxels counted by length."""
    centres = _centres(size, wanted)
    # Centres are given to half a voxel; the voxel i covers i - 1/2 to i + 1/2.
    low, high = centres - thickness / 2, centres + thickness / 2
    first = np.floor(low + 0.5 + 1e-9).astype(np.int64)
    voxels = first[:, None] + np.arange(int(np.ceil(thickness)) + 1)
    lengths = np.minimum(high[:, None], voxels + 0.5) - np.maximum(low[:, None], voxels - 0.5)
    return AxisMap(size, first, _centred(np.clip(lengths, 0, None), first, centres))


def _centred(
    weights: NDArray[np.float64], first: NDArray[np.int64], centres: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Scale weights to sum 1 and tilt them so that their centroid is the coarse centre: constants and ramps stay."""
    # Symmetric weights have it there already; those of a fractional factor miss it by a few hundredths of a voxel.
    weights = weights / weights.sum(axis=1, keepdims=True)
    places = first[:, None] + np.arange(weights.shape[1]) - centres[:, None]
    centroid = (weights * places).sum(axis=1, keepdims=True)
    variance = (weights * (places - centroid) ** 2).sum(axis=1, keepdims=True)
    tilt = np.divide(centroid, variance, out=np.zeros_like(centroid), where=np.abs(centroid) > 1e-12)
    tilted: NDArray[np.float64] = weights * (1 - tilt * (places - centroid))
    return tilted


def _centres(size: int, wanted: int) -> NDArray[np.float64]:
    """Return the centres of coarse voxels in fine voxels, same field of view."""
    centres: NDArray[np.float64] = (np.arange(wanted) + 0.5) * size / wanted - 0.5
    return centres


def _truncate_kspace(
    voxels: NDArray[np.float32], axis: int, wanted: int, recipe: AxisDegradation
) -> NDArray[np.float32]:
    """Keep the lowest spatial frequencies, as many as were acquired, and sample at the coarse centres."""
    size = voxels.shape[axis]
    spectrum = np.fft.rfft(voxels, axis=axis)
    spectrum = spectrum[(slice(None),) * axis + (slice(wanted // 2 + 1),)]
    frequencies = np.arange(wanted // 2 + 1)
    # The first coarse centre lies (size/wanted - 1)/2 fine voxels beyond the first fine one.
    shift = np.exp(2j * np.pi * frequencies / size * (size / wanted - 1) / 2) * (wanted / size)
    transfer = shift * kspace_window(2 * frequencies / wanted, recipe)
    spectrum = spectrum * transfer.reshape([-1 if a == axis else 1 for a in range(3)])
    return np.fft.irfft(spectrum, n=wanted, axis=axis).astype(np.float32)


def kspace_window(frequencies: NDArray[np.float64], recipe: AxisDegradation) -> NDArray[np.float64]:
    """Return the factor that the acquisition applies to each spatial frequency.

    Args:
        frequencies: From 0 to 1, the Nyquist frequency of the coarse voxels.
        recipe: Of profile "kspace".

    Returns:
        1 at frequency 0; 0 beyond what was acquired.
    """
    radius = frequencies * recipe.zero_filling
    window = np.ones_like(radius)
    if recipe.apodisation == "hamming":
        window = 0.54 + 0.46 * np.cos(np.pi * radius)
    elif recipe.apodisation == "tukey":
        window = 0.5 + 0.5 * np.cos(np.pi * np.clip(2 * radius - 1, 0, 1))
    return np.asarray(np.where(radius <= 1, window, 0.0))


def _add_noise(voxels: NDArray[np.float32], noise: Noise, seed: int) -> NDArray[np.float32]:
    if noise.sigma == 0:
        return voxels
    generator, sigma = np.random.default_rng(seed), np.float32(noise.sigma)
    noisy = voxels + sigma * generator.standard_normal(voxels.shape, dtype=np.float32)
    if noise.kind == "rician":
        np.hypot(noisy, sigma * generator.standard_normal(voxels.shape, dtype=np.float32), out=noisy)
    return noisy
