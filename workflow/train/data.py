"""Training and validation data of a configuration: its files, and the training data made from each."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.axes import FileShape, NetworkShape
from configs.data import HeldOut
from configs.errors import ConfigError, InputError
from configs.schema import RunConfig
from tasks.imaging.consistency import consistent_interpolation
from tasks.imaging.degrade import degrade
from tasks.imaging.resample import resample
from tasks.scoring.metrics import foreground_mask
from tasks.scoring.protocol import degraded_reference, held_out_slabs, pad_to, training_sides
from tasks.training.blocks import TrainingVolume, scan_to_learn_from, training_volume
from tasks.training.job import ValidationVolume
from tasks.training.template import template_path
from tasks.volume.grid import Grid, NetworkAxes, network_axes, target_grid
from tasks.volume.intensity import CLIP, find_intensity, normalise
from tasks.volume.labels import require_image
from tasks.volume.nifti import Volume, read_volume
from workflow.tracking import InputVolume, input_volume

MAX_SIDE = 256  # voxels of held-out slices along their own axes
HOLD_OUT = "Hold out others: --set data.held_out='{axis: 2, start: 0.4, stop: 0.6, gap: 1}'."


@dataclass(frozen=True, eq=False)
class TrainingSource:
    """Training volume of one file.

    Args:
        training: Patches are cropped from it.
        coarse: Input of the trained network: the degraded volume, or the scan that it was trained on.
        target: The grid to restore it on.
        axes: Between file axes and network axes.
    """

    training: TrainingVolume
    coarse: Volume
    target: Grid
    axes: NetworkAxes


def require_named(config: RunConfig) -> None:
    """Check that the configuration names the volumes that it requires.

    Raises:
        ConfigError: It trains from slices and names no volume, or stops early and names no validation volume.
    """
    if config.data.mixture.slices and not config.data.volumes:
        raise ConfigError(
            "Cannot train from slices: no volume is named.",
            "Name the thick-slice scan with --set data.volumes='[scan.nii.gz]'.",
        )
    stops = config.training.early_stopping is not None
    if stops and not (config.data.validation or _holds_out_slices(config)):
        raise ConfigError(
            "Cannot stop early: no validation volume is named.",
            "Name some with --set data.validation='[volume.nii.gz]'.",
        )


def _holds_out_slices(config: RunConfig) -> bool:
    return bool(config.data.mixture.slices) and config.data.held_out is not None


def training_paths(config: RunConfig) -> tuple[Path, ...]:
    """List the files that patches are cropped from: by default the MNI152 template; none where all is synthetic."""
    mixture = config.data.mixture
    return config.data.volumes or (template_path(),) if mixture.volumes or mixture.slices else ()


def training_inputs(config: RunConfig) -> list[InputVolume]:
    """Describe the training and validation files of a configuration."""
    roles = {**dict.fromkeys(config.data.validation, "validation"), **dict.fromkeys(training_paths(config), "training")}
    return [input_volume(path, role, record_paths=config.tracking.record_paths) for path, role in roles.items()]


def training_volumes(config: RunConfig) -> list[TrainingVolume]:
    """Read the training volumes of a configuration.

    Raises:
        ConfigError: It names no volume where it needs one.
        InputError: A volume cannot be used.
    """
    require_named(config)
    if _holds_out_slices(config):
        return [part for path in training_paths(config) for part in _sides_to_learn_from(config, path)]
    return [read_training_source(config, path).training for path in training_paths(config)]


def _sides_to_learn_from(config: RunConfig, path: Path) -> Iterator[TrainingVolume]:
    """Yield the parts of a scan on either side of the slices that are held out, as far as they show any foreground."""
    volume, held_out, found = _read_image(config, path), config.data.held_out, 0
    for side in training_sides(volume.grid.shape, held_out) if held_out is not None else ():
        with suppress(InputError):
            yield scan_to_learn_from(volume, side)
            found += 1
    if not found:
        raise InputError(
            f"Cannot train on the slices of {path.name}: those that are not held out show no foreground.", HOLD_OUT
        )


def read_training_source(config: RunConfig, path: Path) -> TrainingSource:
    """Read one training volume.

    Raises:
        InputError: It cannot be used.
    """
    volume = _read_image(config, path)
    if config.data.mixture.slices:
        axes = network_axes(volume.grid)
        return TrainingSource(
            scan_to_learn_from(volume),
            volume,
            target_grid(volume.grid, axes.of_network(config.degradation.scale)),
            axes,
        )
    degraded = degraded_reference(volume, config.degradation, config.training.seed)
    slab, _ = held_out_slabs(volume.grid.shape, config.data.held_out)
    return TrainingSource(training_volume(degraded, slab), degraded.coarse, degraded.padded, degraded.axes)


def validation_volumes(config: RunConfig) -> list[ValidationVolume]:
    """Read and degrade the validation volumes of early stopping; none without early stopping.

    Where none is named and slices train, these are the slices that are held out.

    Raises:
        ConfigError: Early stopping is configured and no validation volume is named.
        InputError: A volume cannot be used.
    """
    require_named(config)
    if config.training.early_stopping is None:
        return []
    paths = config.data.validation
    if not paths:
        return [volume for path in training_paths(config) for volume in held_out_slices(config, path)]
    return [validation_volume(config, path, seed=config.training.seed) for path in paths]


def ranking_parts(config: RunConfig) -> list[tuple[Path, HeldOut | None]]:
    """List what a training of a sweep is scored on: validation volumes, or the held-out parts of training volumes.

    Raises:
        ConfigError: There is neither.
    """
    data = config.data
    if data.validation:
        return [(path, None) for path in data.validation]
    if data.held_out is None or data.mixture.slices or not training_paths(config):
        raise ConfigError(
            "Cannot rank the trainings of a sweep: no validation volume is named, and no part of the training volumes"
            " is held out.",
            "Name some with --set data.validation='[volume.nii.gz]', or, where fine volumes train, hold a part out with"
            " --set data.held_out='{}'.",
        )
    return [(path, data.held_out) for path in training_paths(config)]


def ranking_volumes(config: RunConfig) -> list[ValidationVolume]:
    """Read and degrade what a training of a sweep is scored on, in the same way for every seed.

    Raises:
        ConfigError: There is nothing to score it on.
        InputError: A volume cannot be used.
    """
    require_named(config)
    return [validation_volume(config, path, held_out) for path, held_out in ranking_parts(config)]


def validation_volume(
    config: RunConfig, path: Path, held_out: HeldOut | None = None, *, seed: int = 0
) -> ValidationVolume:
    """Read and degrade one validation volume, or the held-out part of one.

    Raises:
        InputError: It cannot be used.
    """
    volume = _read_image(config, path)
    part = volume.voxels[held_out_slabs(volume.grid.shape, held_out)[1]]
    volume = Volume(part, Grid(FileShape(*part.shape), volume.grid.affine))
    degraded = degraded_reference(volume, config.degradation, seed)
    found = find_intensity(degraded.coarse.voxels)
    fine, coarse = (
        degraded.axes.to_network(normalise(volume, found, clip=CLIP))
        for volume in (pad_to(degraded.reference.voxels, degraded.padded.shape), degraded.coarse.voxels)
    )
    return _scored_volume(config, coarse, fine)


def held_out_slices(config: RunConfig, path: Path) -> list[ValidationVolume]:
    """Degrade the slices of a scan that are held out along each of their own two axes, as `rotated_slices` does.

    Raises:
        InputError: The scan cannot be used.
    """
    volume, recipe = _read_image(config, path), config.degradation
    axes, (_, slab) = network_axes(volume.grid), held_out_slabs(volume.grid.shape, config.data.held_out)
    held = axes.to_network(normalise(volume.voxels[slab], find_intensity(volume.voxels), clip=CLIP))
    if not (held.size and foreground_mask(held).any()):
        raise InputError(f"Cannot validate on {path.name}: the slices that are held out show no foreground.", HOLD_OUT)
    slices, height, width = held.shape
    held = held[:, _middle(height), _middle(width)]
    found = []
    for order in ((1, 2, 0), (2, 1, 0)):
        turned = held.transpose(order)
        depth = round(int(turned.shape[0] / recipe.depth.factor) * recipe.depth.factor)
        shape = NetworkShape(depth, turned.shape[1], round(slices * recipe.depth.factor))
        fine = resample(np.ascontiguousarray(turned[:depth]), shape)
        found.append(_scored_volume(config, degrade(fine, recipe, config.training.seed), fine))
    return found


def _scored_volume(config: RunConfig, coarse: NDArray[np.float32], fine: NDArray[np.float32]) -> ValidationVolume:
    """Interpolate a degraded volume, normalised `[depth, height, width]`, as the network takes it."""
    shape, recipe = NetworkShape(*fine.shape), config.degradation
    resampled = (
        consistent_interpolation(coarse, shape, recipe, recipe.noise.sigma)
        if config.network.input == "consistent"
        else resample(coarse, shape)
    )
    return ValidationVolume(coarse, np.clip(resampled, 0, np.float32(CLIP)), fine)


def _middle(size: int) -> slice:
    start = max(0, size - MAX_SIDE) // 2
    return slice(start, start + MAX_SIDE)


def _read_image(config: RunConfig, path: Path) -> Volume:
    """Read a volume; InputError if it is a label map and the configuration does not say otherwise."""
    volume = read_volume(path)
    return volume if config.data.kind == "image" else require_image(path, volume, "--set data.kind=image")
