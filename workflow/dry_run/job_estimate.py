"""Estimate of the duration of a run, from measured times of a step, a shard and the starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from configs.schema import RunConfig
from tasks.rehearsal import BuiltNetwork, RehearsedShard, RehearsedStep
from workflow.dry_run.planned_volumes import PlannedVolume

BACKWARD = 3  # multiply-adds of a step by those of the way forward
DRAWING = 2  # patches drawn at one time
TRACING_BESIDE_DRAWING = 2.0  # times longer than alone, by Python's lock: seen 1.7 on the demo, 2.7 with tissues
WRITTEN_PER_SECOND = 4e6  # voxels made consistent with their input, compressed and written by one thread


@dataclass(frozen=True)
class Starts:
    """Start-up times of the parts of a run, in seconds.

    Args:
        reading: Volumes checked, read and degraded.
        cluster: Ray started or joined.
        store: A run opened, written, read and deleted.
        training: A process that trains, until its network is built.
        restoring: A worker that restores, until its network is loaded.
    """

    reading: float = 0.0
    cluster: float = 0.0
    store: float = 0.0
    training: float = 0.0
    restoring: float = 0.0


def seconds_per_step(step: RehearsedStep, device: str, threads: int) -> float:
    """Time of a step while patches are drawn next to it.

    On the CPU both share the threads; a GPU waits only where patches come too slowly.

    Args:
        step: As it was rehearsed.
        device: "GPU" or "CPU".
        threads: CPU threads of the node.
    """
    if device == "GPU":
        return max(step.step_seconds, step.patch_seconds / DRAWING)
    return max(step.step_seconds + step.patch_seconds / threads, step.patch_seconds / DRAWING)


def training_seconds(
    config: RunConfig, step: RehearsedStep, built: BuiltNetwork, validation_voxels: Sequence[int]
) -> float:
    """Time from the first patch to the last step.

    Args:
        config: The run.
        step: As it was rehearsed.
        built: The network on its devices.
        validation_voxels: Of each volume that early stopping scores on.
    """
    training = config.training
    each = seconds_per_step(step, built.device, built.threads)
    seconds = step.fill_seconds + TRACING_BESIDE_DRAWING * step.first_seconds + (training.steps - 1) * each
    if training.early_stopping is not None:
        patch = training.batch_size * prod(training.patch)
        forward = step.step_seconds / BACKWARD / patch  # a voxel
        seconds += training.steps // training.early_stopping.every * forward * sum(validation_voxels)
    return seconds


def restoring_seconds(
    planned: Sequence[PlannedVolume], shard: RehearsedShard, rehearsed: PlannedVolume, workers: int
) -> float:
    """Time from the first shard given out to the last one back.

    Args:
        planned: What is restored.
        shard: As it was rehearsed.
        rehearsed: The volume that it was of.
        workers: That restore.
    """
    at_work = min(workers, sum(volume.shards for volume in planned))
    pace = shard.seconds / rehearsed.plan.shard_multiply_adds
    each = [pace * volume.plan.shard_multiply_adds for volume in planned]
    mean = sum(seconds * volume.shards for seconds, volume in zip(each, planned, strict=True))
    mean /= sum(volume.shards for volume in planned)
    turns = ceil(sum(volume.shards for volume in planned) / at_work)
    return turns * mean + max(0.0, shard.first_seconds - shard.seconds)


def total_seconds(
    starts: Starts, training: float, restoring: float, planned: Sequence[PlannedVolume], *, apart: bool
) -> float:
    """Time from the command to its end.

    Args:
        starts: Of the parts.
        training: From the first patch to the last step.
        restoring: From the first shard to the last.
        planned: What is restored.
        apart: Whether volumes are restored by a command of its own, after the training.
    """
    recording = starts.store + starts.training  # the model is loaded again, asked, logged
    trained = starts.reading + starts.store + starts.cluster + starts.training + training + recording
    # Outputs are written while later shards are computed; the last one is waited for.
    written = max((volume.voxels for volume in planned), default=0) / WRITTEN_PER_SECOND
    restored = starts.restoring + restoring + written
    return trained + restored + ((starts.cluster + starts.store) if apart else 0.0)
