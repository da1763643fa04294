"""Plans of the volumes that a run would restore: shards, overhead, range of the model, room for the outputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, prod
from pathlib import Path

import numpy as np

from configs.errors import InputError
from configs.schema import Resources
from tasks.artifacts.network_file import NetworkFile
from tasks.files.outputs import check_destination, output_paths
from tasks.machine.check import Attempt, Checklist, counted
from tasks.sharding.plan import MIB, ShardPlan
from tasks.sharding.restore import CoarseVolume
from tasks.volume.grid import NetworkAxes
from tasks.volume.intensity import find_intensity
from tasks.volume.nifti import Volume, open_volume
from workflow.checks.disk import VALUE_BYTES, Need
from workflow.restore.restoration import plan_restoration
from workflow.train.data import TrainingSource
from workflow.upscale.plan import UpscaleRequest, VolumePlan, plan_volume

REMEDY = "Raise resources.memory_budget_mib, or choose another --scale or --spacing."
# The planner's figure is an upper bound; over thirteen plans shards took 0.63 to 0.97 of it.
LIKELY_SHARE = 0.78
MAX_SHOWN = 3
IN_FLIGHT = 2  # volumes whose cores are on disk at one time: one is written while the next is restored


@dataclass(frozen=True, eq=False)
class PlannedVolume:
    """A volume that would be restored.

    Args:
        name: Of its file.
        plan: Its shards.
        coarse: Reads it for the workers.
        core_bytes: Of the restored shards of a time point on disk, until the output is written.
        n_timepoints: Time points.
        value_bytes: Of a voxel of the output on disk.
        driver_bytes: Memory of the process of the command line, beyond an idle one; 0 where it is not estimated.
        warnings: Where it leaves the range of the model.
    """

    name: str
    plan: ShardPlan
    coarse: Callable[[], CoarseVolume] = field(repr=False)
    core_bytes: int
    n_timepoints: int = 1
    value_bytes: int = VALUE_BYTES
    driver_bytes: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def shards(self) -> int:
        """Over all time points."""
        return self.n_timepoints * len(self.plan.shards)

    @property
    def likely_bytes(self) -> int:
        """Estimate of the memory of a worker for a shard beyond an idle one; the planner's bound is the maximum."""
        return int(LIKELY_SHARE * self.plan.shard_bytes)

    @property
    def voxels(self) -> int:
        """Of the target grid, all time points."""
        return self.n_timepoints * prod(self.plan.target_shape)


def check_outputs(checks: Checklist, sources: Sequence[Path], out: Path, *, writable: bool) -> None:
    """Check that each input has an output of its own, which overwrites no input and, where `writable`, can be made."""
    tried = f"the names of {counted(len(sources), 'output')}"
    with checks.trying("outputs", tried, "Choose another --out.") as attempt:
        outputs = output_paths(sources, out)
        for output in outputs if writable else ():
            try:
                check_destination(output, 0)
            except InputError as error:
                attempt.error(error)
        more = f" and {len(outputs) - MAX_SHOWN} more" if len(outputs) > MAX_SHOWN else ""
        attempt.ok(", ".join(output.name for output in outputs[:MAX_SHOWN]) + more)


def plan_inputs(checks: Checklist, request: UpscaleRequest, labels: Sequence[str]) -> list[PlannedVolume]:
    """Plan the inputs as `voxlift upscale` would; each that cannot be restored is a failure.

    Args:
        checks: Receive the plans.
        request: The inputs, and how they are restored.
        labels: Of each input, why it is taken for a label map; empty for an image.
    """
    planned = []
    tried = f"{counted(len(request.sources), 'input')} in shards for {request.network.name}, by header"
    with checks.trying("shard plan", tried, REMEDY) as attempt:
        for source, reason in zip(request.sources, labels, strict=True):
            try:
                (output,) = output_paths([source], request.out)
                plan = plan_volume(request, open_volume(source), output, labels=reason)
                planned.append(_planned(plan))
                if plan.labels:
                    attempt.ok(f"{plan.name}: {plan.label_note}")
            except InputError as error:
                attempt.error(error)
        _note_plans(attempt, planned)
    return planned


def plan_training_source(
    checks: Checklist, source: TrainingSource, network: NetworkFile, resources: Resources
) -> list[PlannedVolume]:
    """Plan to restore the first training volume, as the demo does."""
    planned = []
    name = "the first training volume"
    with checks.trying("shard plan", f"{name}, degraded, in shards for {network.name}", REMEDY) as attempt:
        plan = plan_restoration(source.coarse, source.target, network, resources, axes=source.axes, name=name)
        size = VALUE_BYTES * prod(plan.target_shape)
        planned = [PlannedVolume(name, plan, lambda: _coarse(source.coarse, source.axes, plan), size)]
        _note_plans(attempt, planned)
    return planned


def _note_plans(attempt: Attempt, planned: Sequence[PlannedVolume]) -> None:
    for volume in planned[:MAX_SHOWN]:
        driver = f"; about {ceil(volume.driver_bytes / MIB)} MiB at most in the process of the command line"
        attempt.ok(f"{volume.name}: {volume.plan}{driver if volume.driver_bytes else ''}")
    if len(planned) > MAX_SHOWN:
        attempt.ok(f"{counted(sum(volume.shards for volume in planned), 'shard')} of {len(planned)} volumes in all")


def check_range(checks: Checklist, network: NetworkFile, planned: Sequence[PlannedVolume], *, trained: bool) -> None:
    """Compare the volumes with the network's card: outside its range is a failure, before it is trained a warning."""
    remedy = "Choose a model that was trained for it, or another --scale or --spacing."
    tried = f"scale and spacing of {counted(len(planned), 'volume')} against the card of {network.name}"
    with checks.trying("range of the model", tried, remedy) as attempt:
        for volume in planned:
            for warning in volume.warnings:
                if trained:
                    attempt.failure(f"Cannot trust {network.name} with {volume.name}: {warning}.")
                else:
                    attempt.warning(f"{volume.name}: {warning}")
        if network.card is None:
            attempt.warning(
                f"{network.name} carries no card: what it was trained for is not known", "Train it with voxlift."
            )
        elif not any(volume.warnings for volume in planned):
            attempt.ok("all inside")


def overhead(planned: Sequence[PlannedVolume]) -> float:
    """Voxels computed over voxels kept, over all volumes."""
    computed = sum(volume.voxels * volume.plan.overhead for volume in planned)
    return computed / sum(volume.voxels for volume in planned)


def output_needs(planned: Sequence[PlannedVolume], out: Path) -> list[Need]:
    """Estimate what restoring writes: outputs, decompressed, and the cores of those that are on their way."""
    cores = sorted((volume.n_timepoints * volume.core_bytes for volume in planned), reverse=True)
    outputs = sum(volume.voxels * volume.value_bytes for volume in planned)
    return [Need("outputs", out, outputs), Need("restored shards", out, sum(cores[:IN_FLIGHT]))]


def _planned(volume: VolumePlan) -> PlannedVolume:
    scan, plan = volume.scan, volume.shard_plan
    on_disk = np.dtype(volume.dtype) if volume.dtype else scan.header.dtype
    return PlannedVolume(
        name=scan.path.name,
        plan=plan,
        coarse=lambda: _coarse(scan.read(0), volume.axes, plan),
        n_timepoints=volume.n_timepoints,
        value_bytes=on_disk.itemsize if on_disk.kind in "iu" or volume.dtype else VALUE_BYTES,
        core_bytes=volume.core_bytes,
        driver_bytes=volume.driver_bytes,
        warnings=volume.warnings,
    )


def _coarse(volume: Volume, axes: NetworkAxes, plan: ShardPlan) -> CoarseVolume:
    voxels = np.ascontiguousarray(axes.to_network(volume.voxels))
    return CoarseVolume(voxels, plan.target_shape, find_intensity(volume.voxels))
