"""Training patches, cropped from blocks: pieces of anatomy, each augmented and degraded once.

Blocks are drawn from (seed, number) alone and patches from (seed, index) alone, so that a run can be repeated and taken
up anywhere.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm
from threading import Lock
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from configs.axes import AXES, NetworkShape
from configs.data import Augmentation, Mixture
from configs.degradation import Degradation, Noise
from configs.errors import InputError
from configs.schema import RunConfig
from tasks.imaging.consistency import consistent_interpolation
from tasks.imaging.degrade import degrade
from tasks.imaging.resample import resample
from tasks.scoring.metrics import foreground_mask
from tasks.scoring.protocol import WHOLE, DegradedReference, Slab
from tasks.training.anatomy import draw_shapes, draw_tissues
from tasks.volume.grid import network_axes
from tasks.volume.intensity import CLIP, find_intensity, normalise
from tasks.volume.nifti import Volume

Array = NDArray[np.float32]

MARGIN = 32  # voxels by which a block is larger than a patch
LANES = 4  # blocks that patches come from in turn, so that a batch shows different anatomy
PATCHES = 16  # patches per block
MAX_TRIES = 8  # places looked at for one that shows enough of the foreground
MIN_FOREGROUND_SHARE = 0.25  # share of the foreground in a patch
PERIODIC_EDGE = 8  # voxels along each side of a block that no patch is cropped from where k-space wraps around
DAMPING = 1e-4  # of the correction that follows the network, without noise
MAX_TEXTURE_WIDTH = 0.7  # standard deviation, in voxels, of what smooths the noise of a fine volume
TYPICAL_ERROR = 0.03  # of a restored voxel, in normalised intensity: what noise is weighed against


@dataclass(frozen=True, eq=False)
class TrainingVolume:
    """One volume to learn from, normalised, in network axes (depth, height, width).

    Args:
        fine: float32.
        foreground: Flat indices of the voxels around which blocks are cropped, int64.
        spacing: mm per voxel, None where it does not matter.
    """

    fine: Array
    foreground: NDArray[np.int64]
    spacing: tuple[float, float, float] | None = None

    @classmethod
    def of(cls, fine: Array, spacing: tuple[float, float, float] | None = None) -> "TrainingVolume":
        """Find the foreground of a volume.

        Raises:
            InputError: No voxel belongs to the foreground.
        """
        foreground = np.flatnonzero(foreground_mask(fine))
        if not foreground.size:
            raise InputError(
                "Cannot train on this volume: no voxel is over 5 % of its intensity range, so it shows no foreground."
            )
        return cls(np.ascontiguousarray(fine), foreground, spacing)


@dataclass(frozen=True, eq=False)
class Block:
    """A piece of anatomy.

    Args:
        resampled: As the network sees it, float32 `[depth, height, width]`.
        fine: As it should be, likewise.
        steps: Fine voxels from one coarse voxel to the next where that is a whole number, else 1.
        number: Of the degradation that the network takes it to have, among those of the source.
        damping: Of the correction that follows the network.
    """

    resampled: Array
    fine: Array
    steps: NetworkShape
    number: int
    damping: float


@dataclass(frozen=True, eq=False)
class BlockSource:
    """Draws blocks, each from (seed, number) alone.

    Args:
        volumes: What `mixture.volumes` and `mixture.slices` draw from.
        mixture: Where blocks come from.
        degradations: From fine to coarse; one is drawn for each block.
        augmentation: Of the blocks.
        shape: Of a block, in voxels.
        seed: Of the whole run.
        network_input: As in `configs.schema.Network`.
    """

    volumes: Sequence[TrainingVolume]
    mixture: Mixture
    degradations: Sequence[Degradation]
    augmentation: Augmentation
    shape: NetworkShape
    seed: int
    network_input: Literal["interpolated", "consistent"] = "interpolated"

    def origin(self, random: np.random.Generator) -> tuple[str, int]:
        """Draw the part of the mixture that a block comes from, and the number of its volume; 0 for synthetic parts."""
        parts = self.mixture.parts
        source = str(random.choice(list(parts), p=np.array(list(parts.values())) / sum(parts.values())))
        return source, int(random.integers(len(self.volumes))) if source in {"volumes", "slices"} else 0

    def draw(self, number: int) -> Block:
        """Draw a block."""
        random = np.random.default_rng((self.seed, number))
        source, index = self.origin(random)
        permutes = self.augmentation.reorient
        if source == "shapes":
            fine = draw_shapes(random, self.shape, self.augmentation.kspace)
        elif source == "tissues":
            order = random.permutation(3) if permutes else np.arange(3)
            turned = NetworkShape(*np.array(self.shape)[np.argsort(order)])
            drawn = draw_tissues(random, turned, self.augmentation.kspace)
            fine = np.ascontiguousarray(drawn.transpose(order))
        else:
            volume = self.volumes[index]
            if source == "volumes":
                permutes = permutes or all(recipe.is_isotropic for recipe in self.degradations)
                order = random.permutation(3) if permutes else np.arange(3)
                fine = crop(random, volume, self.shape, order)
            elif random.random() < 0.5:
                fine = rotated_slices(random, volume, self.shape, self.degradations[0].depth.factor)
            else:
                fine = sheared_slice(random, volume, self.shape)
        augmentation = self.augmentation
        how = augmentation if source == "volumes" else augmentation.model_copy(update={"sharpen": 0.0})
        fine = np.clip(augment(random, fine, how), 0, np.float32(CLIP))
        true = int(random.integers(len(self.degradations))) if len(self.degradations) > 1 else 0
        number = true
        if augmentation.mistaken and random.random() < augmentation.mistaken:
            number = self._mistaken(random, true)
        recipe = drawn_recipe(random, self.degradations[true], augmentation)
        coarse = degrade(fine, recipe, int(random.integers(1 << 31)))
        noise = recipe.noise.sigma
        resampled = (
            consistent_interpolation(coarse, self.shape, self.degradations[number], noise)
            if self.network_input == "consistent"
            else resample(coarse, self.shape)
        )
        steps, damping = coarse_steps(recipe), DAMPING + (noise / TYPICAL_ERROR) ** 2
        return Block(np.clip(resampled, 0, np.float32(CLIP)), fine, steps, number, damping)

    def _mistaken(self, random: np.random.Generator, true: int) -> int:
        """Draw the number of a degradation that another one is taken for."""
        alike = [n for n, recipe in enumerate(self.degradations) if recipe.scale == self.degradations[true].scale]
        assumed = self.augmentation.assumed
        return int(random.choice([n for n in alike if self.degradations[n].name in assumed] or alike[:1]))


def training_volume(degraded: DegradedReference, slab: Slab) -> TrainingVolume:
    """Crop what trains from a reference, normalised by what the coarse volume alone shows, as the network sees it.

    Args:
        degraded: A reference and its coarse volume.
        slab: The part of the reference's grid that trains.

    Raises:
        InputError: The slab shows no foreground.
    """
    intensity = find_intensity(degraded.coarse.voxels)
    fine = degraded.axes.to_network(normalise(degraded.reference.voxels[slab], intensity, clip=CLIP))
    return TrainingVolume.of(fine, degraded.axes.of_file(degraded.reference.grid.spacing))


def scan_to_learn_from(volume: Volume, slab: Slab = WHOLE) -> TrainingVolume:
    """A volume as it is, for training from its own slices.

    Args:
        volume: The scan.
        slab: The part of it that trains.

    Raises:
        InputError: The slab shows no foreground.
    """
    axes = network_axes(volume.grid)
    fine = axes.to_network(normalise(volume.voxels[slab], find_intensity(volume.voxels), clip=CLIP))
    return TrainingVolume.of(fine, axes.of_file(volume.grid.spacing))


def block_shape(patch: NetworkShape, degradations: Sequence[Degradation]) -> NetworkShape:
    """The shape of blocks: a margin larger than patches, and whole coarse voxels where the factors are whole.

    >>> from configs.degradation import named_degradation
    >>> block_shape(NetworkShape(16, 64, 64), [named_degradation("iso2x")])
    NetworkShape(depth=48, height=96, width=96)
    """
    steps = (lcm(*steps) for steps in zip(*map(coarse_steps, degradations), strict=True))
    return NetworkShape(*(-(-(size + MARGIN) // step) * step for size, step in zip(patch, steps, strict=True)))


def coarse_steps(degradation: Degradation) -> NetworkShape:
    """Fine voxels from one coarse voxel to the next where that is a whole number, else 1."""
    return NetworkShape(*(int(factor) if factor == int(factor) else 1 for factor in degradation.scale))


def crop(random: np.random.Generator, volume: TrainingVolume, shape: NetworkShape, order: NDArray[np.integer]) -> Array:
    """Crop a block around a random voxel of the foreground.

    Args:
        random: Source of all that is random.
        volume: To crop.
        shape: Of the block; where the volume is smaller, it is continued by its mirror image.
        order: Axes of the volume that become depth, height and width.
    """
    fine = volume.fine.transpose(order)
    place = np.unravel_index(volume.foreground[random.integers(volume.foreground.size)], volume.fine.shape)
    centre = np.array(place)[order] + random.integers(-MARGIN // 2, MARGIN // 2 + 1, 3)
    start = np.clip(centre - np.array(shape) // 2, 0, np.maximum(np.array(fine.shape) - shape, 0))
    piece = fine[tuple(slice(first, first + size) for first, size in zip(start, shape, strict=True))]
    padding = [(0, size - have) for size, have in zip(shape, piece.shape, strict=True)]
    return np.ascontiguousarray(np.pad(piece, padding, mode="symmetric"))


def rotated_slices(random: np.random.Generator, volume: TrainingVolume, shape: NetworkShape, factor: float) -> Array:
    """Crop a block with an in-plane axis of the slices as its depth; slices are interpolated along its width.

    Args:
        random: Source of all that is random.
        volume: Thick slices along its first axis.
        shape: Of the block.
        factor: Thickness of a slice in fine voxels.
    """
    first, second = random.permutation((1, 2))
    depth, height, width = shape
    slices = -(-width // int(factor))
    piece = crop(random, volume, NetworkShape(depth, height, slices), np.array((first, second, 0)))
    return resample(piece, (depth, height, max(width, round(slices * factor))))[..., :width]


def sheared_slice(random: np.random.Generator, volume: TrainingVolume, shape: NetworkShape) -> Array:
    """Extend one slice into a block, shifted from plane to plane, so that its edges lie at a slant in three dimensions.

    Depth and height of the block are the in-plane axes of the slice, in random order; its width goes through the slice.
    """
    number, row, column = np.unravel_index(
        volume.foreground[random.integers(volume.foreground.size)], volume.fine.shape
    )
    plane, centre = volume.fine[number], np.array((row, column))
    if random.random() < 0.5:
        plane, centre = plane.T, centre[::-1]
    depth, height, width = (np.arange(size, dtype=np.float32) - size // 2 for size in shape)
    slant = random.normal(0, 0.6, 2)
    rows = centre[0] + depth[:, None, None] + slant[0] * width + 0 * height[:, None]
    columns = centre[1] + height[:, None] + slant[1] * width + 0 * depth[:, None, None]
    return np.asarray(map_coordinates(plane, (rows, columns), order=3, mode="reflect"), np.float32)


def augment(random: np.random.Generator, fine: Array, how: Augmentation) -> Array:
    """Vary a block as subjects and scanners do: sharpness, gamma, inversion, bias field, gain and noise of its own."""
    if how.sharpen:
        amount, width = np.float32(random.uniform(0, how.sharpen)), random.uniform(0.8, 1.6)
        fine = np.maximum(fine + amount * (fine - gaussian_filter(fine, width)), 0)
    if how.smooth and random.random() < 0.5:
        fine = gaussian_filter(fine, random.uniform(0, how.smooth))
    if how.gamma:
        fine = np.power(np.maximum(fine, 0), np.float32(np.exp(random.normal(0, how.gamma))))
    if random.random() < how.invert:
        fine = fine.max() - fine
    if how.bias:
        knots = random.uniform(1 - how.bias, 1 + how.bias, (3, 3, 3)).astype(np.float32)
        fine = fine * resample(knots, NetworkShape(*fine.shape), "linear")
    fine = fine * np.float32(np.exp(random.normal(0, how.gain)))
    if how.texture != (0.0, 0.0):
        noise = gaussian_filter(random.standard_normal(fine.shape, np.float32), random.uniform(0, MAX_TEXTURE_WIDTH))
        fine = fine + np.float32(random.uniform(*how.texture)) / noise.std() * noise
    return fine


def drawn_recipe(random: np.random.Generator, recipe: Degradation, how: Augmentation) -> Degradation:
    """Draw a degradation around the recipe: its blur, its factors and its noise."""
    stretch, sigma = random.uniform(*how.blur), random.uniform(*how.noise)
    thicker = random.uniform(*how.factor) if how.factor != (1.0, 1.0) else 1.0
    if how.noiseless and random.random() < how.noiseless:
        sigma = 0.0
    if how.blur == (1.0, 1.0) and thicker == 1 and sigma == 0:
        return recipe
    axes = {}
    for name, axis in zip(AXES, recipe.axes, strict=True):
        factor = max(1.0, axis.factor * thicker) if axis.factor > 1 else axis.factor
        blur = axis.blur_fwhm * stretch * factor / axis.factor
        axes[name] = axis.model_copy(update={"factor": factor, "blur_fwhm": blur})
    kind = "rician" if how.rician and random.random() < how.rician else recipe.noise.kind
    noise = Noise(kind=kind, sigma=float(np.hypot(recipe.noise.sigma, sigma)))
    return recipe.model_copy(update={**axes, "noise": noise})


class Patch(NamedTuple):
    """A patch to learn from.

    Args:
        resampled: The network's input, float32 `(depth, height, width, 1)`.
        fine: Its target, likewise.
        share: Of the foreground.
        number: Of its degradation among those of the run.
        damping: Of the correction that follows the network.
    """

    resampled: Array
    fine: Array
    share: np.float32
    number: int
    damping: float


class PatchSource:
    """Draws patches; keeps the blocks that they are cropped from as long as they are in turn. Safe in several threads.

    Args:
        volumes: Volumes to learn from; may be empty where the configuration draws from none.
        config: The run.
    """

    def __init__(self, volumes: Sequence[TrainingVolume], config: RunConfig) -> None:
        self._patch = config.training.patch
        self._seed = config.training.seed
        recipes = run_degradations(config)
        self._swaps = self._patch[1] == self._patch[2] and all(recipe.height == recipe.width for recipe in recipes)
        # K-space takes a block to be periodic, which anatomy is not: what wraps around is left out.
        periodic = any(axis.profile == "kspace" for recipe in recipes for axis in recipe.axes)
        self._edge = PERIODIC_EDGE if periodic else 0
        self._source = BlockSource(
            volumes,
            config.data.mixture,
            recipes,
            config.augmentation,
            block_shape(self._patch, recipes),
            self._seed,
            config.network.input,
        )
        self._blocks: OrderedDict[int, tuple[Lock, list[Block]]] = OrderedDict()
        self._lock = Lock()

    def draw(self, index: int) -> Patch:
        """Draw one patch: a place inside a block, where coarse voxels begin, a change of axes and flips.

        Args:
            index: Number of the patch in the run; the same (seed, index) is the same patch.
        """
        block = self._block(block_number(index))
        random = np.random.default_rng((self._seed, index, 1))
        edges = [-(-self._edge // step) * step for step in block.steps]
        swap = self._swaps and random.random() < 0.5
        for _ in range(MAX_TRIES):
            start = [
                edge + int(random.integers((whole - size - 2 * edge) // step + 1)) * step
                for whole, size, step, edge in zip(block.fine.shape, self._patch, block.steps, edges, strict=True)
            ]
            window = tuple(slice(first, first + size) for first, size in zip(start, self._patch, strict=True))
            share = foreground_mask(block.fine[window]).mean(dtype=np.float32)
            if share >= MIN_FOREGROUND_SHARE:
                break
        flips = tuple(slice(None, None, int(step)) for step in random.choice((-1, 1), 3))

        def taken(volume: Array) -> Array:
            piece = volume[window][flips]
            return np.ascontiguousarray(piece.transpose(0, 2, 1) if swap else piece)[..., np.newaxis]

        return Patch(taken(block.resampled), taken(block.fine), share, block.number, block.damping)

    def describe(self, index: int) -> str:
        """Describe where a patch comes from: its index, and the part of the mixture or the volume."""
        source, volume = self._source.origin(np.random.default_rng((self._seed, block_number(index))))
        return f"patch {index} from {source}" + (f" (volume {volume + 1})" if source in {"volumes", "slices"} else "")

    def _block(self, number: int) -> Block:
        """The block of that number, drawn once however many threads ask for it."""
        with self._lock:
            drawing, drawn = self._blocks.setdefault(number, (Lock(), []))
            while len(self._blocks) > 2 * LANES:
                self._blocks.popitem(last=False)
        with drawing:
            if not drawn:
                drawn.append(self._source.draw(number))
        return drawn[0]


def run_degradations(config: RunConfig) -> tuple[Degradation, ...]:
    """The degradations that the blocks of a run are drawn from."""
    return config.augmentation.acquisitions or (config.degradation,)


def block_number(index: int) -> int:
    """The block of a patch. Lanes change their blocks one after another, so that no step waits for all.

    >>> [block_number(index) for index in (0, 1, 2, 3, 4, 5)]
    [0, 1, 2, 3, 0, 1]
    >>> len({block_number(index) for index in range(16 * 100)})
    103
    """
    lane = index % LANES
    turn = (index // LANES + lane * PATCHES // LANES) // PATCHES
    return turn * LANES + lane
