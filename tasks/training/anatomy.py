"""Synthetic anatomy: sharp boundaries, layers, vessels, textures and contrasts, without any scan.

Label maps with random intensities teach restoration of any contrast (Billot et al., SynthSeg, 2023; Iglesias et al.,
SynthSR, 2021). Here the maps are themselves random, made of smooth fields: level sets of one field are nested layers
like cortex around white matter, the largest of several fields are regions that meet along sharp faces, and two fields
near zero at once are vessels. Or they come from the tissue maps of the MNI152 template, cropped at random places.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from configs.axes import NetworkShape, triple
from configs.degradation import Apodisation, AxisDegradation, isotropic
from tasks.imaging.degrade import degrade
from tasks.imaging.resample import resample
from tasks.training.template import template_path
from tasks.volume.intensity import find_intensity, normalise
from tasks.volume.nifti import read_volume

Array = NDArray[np.float32]

MAX_INTENSITY = 1.1  # of a tissue, before texture
# Of fine scans: half of them are not apodised, and few are interpolated by much.
APODISATIONS: tuple[Apodisation, ...] = ("none", "none", "hamming", "tukey")
MAX_ZERO_FILLING = 1.25
MIN_KNOT_DISTANCE, MAX_KNOT_DISTANCE = 5.0, 36.0  # of a rough field, in voxels


def draw_shapes(random: np.random.Generator, shape: NetworkShape, kspace: float = 0.0) -> Array:
    """Draw anatomy of random shapes.

    Args:
        random: Source of all that is random.
        shape: In voxels along depth, height and width.
        kspace: Probability that it is imaged by k-space truncation, as MR does, instead of a Gaussian blur.

    Returns:
        float32 of `shape`, about 0..1.1, air near 0.
    """
    voxels = _regions(random, shape)
    for _ in range(random.integers(1, 4)):
        voxels = np.where(_field(random, shape, 16, 60) > random.normal(0, 0.5), voxels, _regions(random, shape))
    for _ in range(random.integers(0, 3)):
        voxels[_vessel(random, shape)] = random.uniform(0.03, 1.3)
    voxels *= 1 + random.uniform(0, 0.08) * _field(random, shape, 2.5, 6, stretch=0)
    if random.random() < 0.6:
        voxels[_air(random, shape)] = random.uniform(0, 0.03)
    return _imaged(random, voxels, kspace)


def draw_tissues(random: np.random.Generator, shape: NetworkShape, kspace: float = 0.0) -> Array:
    """Draw a crop of the MNI152 template's tissues, each with a random intensity; as `draw_shapes`."""
    whole, grey, white = _crop(random, shape, _template())
    brain = grey + white
    jitter = random.uniform(0.03, 0.15)
    grey = grey + jitter * _field(random, shape, 4, 6, stretch=0)
    white = white + jitter * _field(random, shape, 4, 6, stretch=0)
    inside = np.where(white > np.maximum(grey, 1 - brain), 2, (grey > 1 - brain).astype(int))
    outside = np.digitize(whole + 0.03 * _field(random, shape, 4, 4, stretch=0), (0.08, 0.3, 0.5, 0.7, 0.9))
    tissues, others = (random.uniform(0.05, MAX_INTENSITY, count).astype(np.float32) for count in (3, 6))
    others[0] = random.uniform(0, 0.03)
    within = gaussian_filter(brain, 3) > 0.35
    stripped = random.random() < 0.4
    voxels = np.where(within, tissues[inside], 0 if stripped else others[outside]).astype(np.float32)
    voxels *= 1 + random.uniform(0, 0.06) * _field(random, shape, 2.5, 6, stretch=0)
    return _imaged(random, voxels, kspace)


def _regions(random: np.random.Generator, shape: NetworkShape) -> Array:
    """Draw nested layers of one field, or the regions where each of several is the largest."""
    if random.random() < 0.6:
        edges = np.sort(random.uniform(-1.8, 1.8, random.integers(1, 6)))
        tissues = random.uniform(0.03, MAX_INTENSITY, edges.size + 1).astype(np.float32)
        return tissues[np.digitize(_rough_field(random, shape), edges)]
    largest = np.full(shape, -np.inf, np.float32)
    voxels = np.zeros(shape, np.float32)
    for _ in range(random.integers(4, 10)):
        field = _rough_field(random, shape) + np.float32(random.normal(0, 0.3))
        here = field > largest
        largest[here] = field[here]
        voxels[here] = random.uniform(0.03, MAX_INTENSITY)
    return voxels


def _rough_field(random: np.random.Generator, shape: NetworkShape) -> Array:
    field = _field(random, shape, MIN_KNOT_DISTANCE, MAX_KNOT_DISTANCE)
    if random.random() < 0.5:
        field = field + np.float32(random.uniform(0.1, 0.4)) * _field(random, shape, 2.5, MIN_KNOT_DISTANCE)
    return field


def _field(
    random: np.random.Generator, shape: NetworkShape, finest: float, coarsest: float, stretch: float = 0.3
) -> Array:
    """Draw a smooth field of about unit variance by its knots, whose distance differs between axes by `stretch`."""
    distance = np.exp(random.uniform(np.log(finest), np.log(coarsest)) + random.normal(0, stretch, 3))
    knots = triple(max(3, round(size / max(step, 2.5))) for size, step in zip(shape, distance, strict=True))
    return resample(random.standard_normal(knots, dtype=np.float32), shape)


def _vessel(random: np.random.Generator, shape: NetworkShape) -> NDArray[np.bool_]:
    across, along = (_field(random, shape, 8, 24, stretch=0) for _ in range(2))
    return np.asarray(np.hypot(across, along) < random.uniform(0.05, 0.2))


def _air(random: np.random.Generator, shape: NetworkShape) -> NDArray[np.bool_]:
    """Draw a mask of the outside of an uneven ellipsoid."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size, dtype=np.float32) for size in shape), indexing="ij", sparse=True)
    radii, centre = random.uniform(0.7, 1.4, 3), random.uniform(-0.4, 0.4, 3)
    distance = sum(((axis - middle) / radius) ** 2 for axis, middle, radius in zip(axes, centre, radii, strict=True))
    return np.asarray(distance + random.uniform(0, 0.1) * _field(random, shape, 8, 8, stretch=0) > 1)


def _imaged(random: np.random.Generator, voxels: Array, kspace: float) -> Array:
    """Image anatomy as a fine scan does, and add noise where there is tissue."""
    if kspace and random.random() >= 1 - kspace:
        blurred = gaussian_filter(voxels, random.uniform(0.25, 0.45))
        apodisation = APODISATIONS[int(random.integers(len(APODISATIONS)))]
        filling = float(random.uniform(1, MAX_ZERO_FILLING))
        axis = AxisDegradation(profile="kspace", zero_filling=filling, apodisation=apodisation)
        blurred = degrade(blurred, isotropic("scanner", axis))
    else:
        blurred = gaussian_filter(voxels, random.uniform(0.4, 0.75))
    noise = gaussian_filter(random.standard_normal(voxels.shape, dtype=np.float32), random.uniform(0.2, 0.7))
    blurred += np.float32(random.uniform(0, 0.03)) * noise * (blurred > 0.03)
    return np.asarray(np.maximum(blurred, 0), np.float32)


def _crop(random: np.random.Generator, shape: NetworkShape, volumes: Sequence[Array]) -> list[Array]:
    """Crop volumes at the same random place; where they are smaller, their edges are repeated."""
    sizes = list(zip(volumes[0].shape, shape, strict=True))
    starts = [int(random.integers(0, max(1, size - wanted + 1))) for size, wanted in sizes]
    window = tuple(slice(start, start + wanted) for start, wanted in zip(starts, shape, strict=True))
    padding = [(0, max(0, wanted - size)) for size, wanted in sizes]
    return [np.pad(volume[window], padding, mode="edge") for volume in volumes]


@cache
def _template() -> tuple[Array, Array, Array]:
    """The T1 template and its grey and white matter, each 0..1, `[depth, height, width]`; read once per process."""
    t1, grey, white = (read_volume(template_path(kind)).voxels.T for kind in ("t1", "gm", "wm"))
    maps = (normalise(t1, find_intensity(t1)), grey / grey.max(), white / white.max())
    return triple(map(np.ascontiguousarray, maps))
