"""Estimate of what a run takes, from the measured duration of a step, a shard and the starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from configs.schema import RunConfig
from tasks.rehearsal import RehearsedShard, RehearsedStep
from workflow.checks.plans import PlannedVolume

BACKWARD = 3  # multiply-adds of a step over those of a forward pass
DRAWING = 2  # threads that draw patches where no processes do
TRACING_WHILE_DRAWING = 2.0  # times longer than alone, by Python's lock: seen 1.7 on the demo, 2.7 with tissues
WRITTEN_PER_SECOND = 4e6  # voxels made consistent with their input, compressed and written by one thread


@dataclass(frozen=True)
class Memory:
    """MiB beyond an idle process: estimated from the layers, and measured; None where unknown."""

    estimated: float | None = None
    measured: float | None = None


@dataclass(frozen=True)
class Estimates:
    """Estimate for the real run; None where unknown.

    Args:
        seconds_per_step: While patches are drawn in parallel.
        training_seconds: From the first patch to the last step.
        replica_mib: Of each model replica in training.
        shard_mib: Of a worker for the largest shard.
        shards: Of all volumes that would be restored.
        overhead: Voxels computed over voxels kept.
        restoring_seconds: From the first shard given out to the last one back.
        total_seconds: From the command to its end; with inputs, of the two commands.
        output_bytes: The most that outputs, checkpoints and artifacts take on disk.
    """

    seconds_per_step: float | None = None
    training_seconds: float | None = None
    replica_mib: Memory = Memory()
    shard_mib: Memory = Memory()
    shards: int | None = None
    overhead: float | None = None
    restoring_seconds: float | None = None
    total_seconds: float | None = None
    output_bytes: int | None = None


@dataclass(frozen=True)
class Starts:
    """Seconds of each start: of volumes, Ray, the tracking store, the training process and a restoring worker."""

    reading: float = 0.0
    cluster: float = 0.0
    store: float = 0.0
    training: float = 0.0
    restoring: float = 0.0


def seconds_per_step(step: RehearsedStep, device: str, threads: int, processes: int = 0) -> float:
    """Estimate a step while patches are drawn in parallel, on a "GPU" or the "CPU" of a node with so many threads.

    On the CPU both share the threads; a GPU waits only where so many processes, or threads, draw too slowly.
    """
    alone = step.step_seconds if device == "GPU" else step.step_seconds + step.patch_seconds / threads
    return max(alone, step.patch_seconds / (processes or DRAWING))


def training_seconds(
    config: RunConfig, step: RehearsedStep, validation_voxels: Sequence[int], seconds_per_step: float
) -> float:
    """Estimate the time from the first patch to the last step, early stopping on the validation volumes included."""
    training = config.training
    seconds = step.fill_seconds + TRACING_WHILE_DRAWING * step.first_seconds + (training.steps - 1) * seconds_per_step
    if training.early_stopping is not None:
        patch = training.batch_size * prod(training.patch)
        forward = step.step_seconds / BACKWARD / patch  # a voxel
        seconds += training.steps // training.early_stopping.every * forward * sum(validation_voxels)
    return seconds


def restoring_seconds(
    planned: Sequence[PlannedVolume], shard: RehearsedShard, rehearsed: PlannedVolume, workers: int
) -> float:
    """Estimate the time from the first shard given out to the last one back, from a shard of the rehearsed volume."""
    pace = shard.seconds / rehearsed.plan.shard_multiply_adds
    shards = sum(volume.shards for volume in planned)
    mean = sum(pace * volume.plan.shard_multiply_adds * volume.shards for volume in planned) / shards
    return ceil(shards / min(workers, shards)) * mean + max(0.0, shard.first_seconds - shard.seconds)


def total_seconds(
    starts: Starts, training: float, restoring: float, planned: Sequence[PlannedVolume], *, apart: bool
) -> float:
    """Estimate the time of the whole command, or of two where a second one restores volumes `apart`."""
    recording = starts.store + starts.training  # the model is loaded again, probed, logged
    trained = starts.reading + starts.store + starts.cluster + starts.training + training + recording
    # Outputs are written while later shards are computed; the last one is waited for.
    written = max((volume.voxels for volume in planned), default=0) / WRITTEN_PER_SECOND
    restored = starts.restoring + restoring + written
    return trained + restored + ((starts.cluster + starts.store) if apart else 0.0)
