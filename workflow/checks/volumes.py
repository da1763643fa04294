"""Check of every volume that a run would read, to its last byte, several at a time."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from configs.errors import ConfigError, InputError
from configs.schema import RunConfig
from tasks.files.selection import expand_inputs
from tasks.machine.check import Attempt, Checklist, counted, first_line
from tasks.training.template import template_path
from tasks.volume.inspection import inspect_volume
from workflow.train.data import TrainingSource, read_training_source, require_named, training_paths, validation_volume

Role = Literal["training", "validation", "input"]
READ = "read to the last byte, as the run would"
# Bytes of files from which processes read instead of threads, which foreign readers do not run in parallel.
PROCESSES_FROM = 100e6
REMEDY = "Fix the volume, or leave it out; `voxlift inspect` shows what is wrong with it."


@dataclass(frozen=True, eq=False)
class VolumeCheck:
    """Result of checking one volume for one purpose.

    Args:
        voxels: Of one time point.
        warnings: What is unusual but no obstacle.
        error: Why it cannot be used, naming it.
        spacing: mm per voxel along depth, height and width, of a training volume.
        source: Of the first training volume.
        labels: Why it is taken for a label map; empty for an image.
    """

    voxels: int = 0
    warnings: tuple[str, ...] = ()
    error: InputError | None = None
    spacing: tuple[float, float, float] | None = None
    source: TrainingSource | None = None
    labels: str = ""


@dataclass(frozen=True, eq=False)
class VolumesSummary:
    """Summary of the volumes of a run.

    Args:
        training: Training volumes that can be used.
        spacing: Smallest and largest mm per voxel of them, across the slices only where whole volumes train.
        source: Of the first of them, or of the template where all is synthetic; None if it cannot be used.
        validation_voxels: Of each validation volume.
        inputs: Volumes to restore that can be used.
        labels: Of each of these, why it is taken for a label map; empty for an image.
        seconds: Time that the reading took.
    """

    training: int
    spacing: tuple[float, float] | None
    source: TrainingSource | None
    validation_voxels: tuple[int, ...]
    inputs: tuple[Path, ...]
    labels: tuple[str, ...]
    seconds: float


def check_volumes(checks: Checklist, config: RunConfig, given: Sequence[str]) -> VolumesSummary:
    """Check all training, validation and `given` input volumes; each one that cannot be used is a failure."""
    began = time.perf_counter()
    found: dict[tuple[Path, Role], VolumeCheck] = {}
    with checks.trying("data", f"every volume {READ}", REMEDY) as attempt:
        wanted = list(_wanted(attempt, config, given))
        attempt.tried = f"{counted(len(wanted), 'volume')} {READ}, several at a time"
        with _pool([path for path, _ in wanted]) as pool:
            found = dict(zip(wanted, pool.map(partial(_checked, config), wanted), strict=True))
        for (path, _), check in found.items():
            if check.error is not None:
                attempt.error(check.error)
            for warning in check.warnings:
                attempt.warning(f"{path.name}: {warning}", "Look at it with `voxlift inspect`.")
        roles = [role for _, role in wanted]
        counts = ", ".join(f"{roles.count(role)} {role}" for role in dict.fromkeys(roles))
        voxels = sum(check.voxels for check in found.values()) / 1e6
        attempt.ok(f"{counts or 'no file: all that trains is synthetic'}; {voxels:.1f} million voxels")
    return _summary(config, found, time.perf_counter() - began)


def _wanted(attempt: Attempt, config: RunConfig, given: Sequence[str]) -> Iterator[tuple[Path, Role]]:
    """List the volumes to look at, and what for; what is not named where it must be is a failure."""
    try:
        require_named(config)
    except ConfigError as error:
        attempt.error(error)
    # Training from slices has no scan to fall back on.
    named = config.data.volumes or not config.data.mixture.slices
    yield from ((path, "training") for path in dict.fromkeys(training_paths(config) if named else ()))
    yield from ((path, "validation") for path in dict.fromkeys(config.data.validation))
    usable = []
    for one in given:
        try:
            expand_inputs([one])
            usable.append(one)
        except InputError as error:
            attempt.error(error)
    yield from ((path, "input") for path in (expand_inputs(usable) if usable else ()))


def _pool(paths: Sequence[Path]) -> Executor:
    """Threads, or processes where there is much to read."""
    size = sum(path.stat().st_size for path in paths if path.is_file())
    count = max(1, min(os.cpu_count() or 1, len(paths)))
    return ThreadPoolExecutor(count) if size < PROCESSES_FROM else ProcessPoolExecutor(count, get_context("spawn"))


def _checked(config: RunConfig, wanted: tuple[Path, Role]) -> VolumeCheck:
    path, role = wanted
    try:
        inspected = inspect_volume(path)
        source = read_training_source(config, path) if role == "training" else None
        if role == "validation" and config.training.early_stopping is not None:
            validation_volume(config, path)
    except (InputError, OSError, MemoryError) as error:
        problem, remedy = (error.problem, error.remedy) if isinstance(error, InputError) else (first_line(error), "")
        named = problem if path.name in problem else f"Cannot use {path.name} for {role}: {problem}"
        return VolumeCheck(error=InputError(named, remedy))
    first = source is not None and path == training_paths(config)[0]
    spacing = source.training.spacing if source else None
    return VolumeCheck(
        prod(inspected.scan.grid.shape),
        inspected.warnings,
        spacing=spacing,
        source=source if first else None,
        labels=inspected.labels,
    )


def _summary(config: RunConfig, found: dict[tuple[Path, Role], VolumeCheck], seconds: float) -> VolumesSummary:
    usable = {wanted: check for wanted, check in found.items() if check.error is None}
    training = [check for (_, role), check in usable.items() if role == "training"]
    # Of a volume that trains by its slices alone, the slice thickness does not count.
    sharp = 0 if config.data.mixture.volumes else 1
    spacing = [size for check in training for size in (check.spacing or ())[sharp:]]
    first = next((check.source for check in training if check.source is not None), None)
    if not training_paths(config):
        first = read_training_source(config, template_path())
    return VolumesSummary(
        training=len(training),
        spacing=(min(spacing), max(spacing)) if spacing else None,
        source=first,
        validation_voxels=tuple(check.voxels for (_, role), check in usable.items() if role == "validation"),
        inputs=tuple(path for path, role in usable if role == "input"),
        labels=tuple(check.labels for (_, role), check in usable.items() if role == "input"),
        seconds=seconds,
    )
