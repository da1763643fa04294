"""Restore a volume on a target grid through the workers of a cluster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from configs.degradation import Degradation
from configs.errors import NotFiniteError
from configs.schema import Resources
from tasks.artifacts.network_file import NetworkFile
from tasks.sharding.plan import ShardPlan, plan_shards, resident_bytes, runs
from tasks.sharding.restore import RestoredCore, coarse_volume, worker_restorer
from tasks.volume.grid import Grid, NetworkAxes, network_axes
from tasks.volume.intensity import Intensity, find_intensity
from tasks.volume.nifti import Volume
from workflow.cluster import RemoteWorker, require_room, room, share
from workflow.cluster.resources import restoring_request
from workflow.restore.worker_pool import Job, Outcome, WorkerPool

MOST_WORKERS = 256  # of an elastic pool


@dataclass(frozen=True)
class Progress:
    """Progress of a restoration.

    Args:
        shards_done: Shards that are back.
        shards: All shards.
        voxels_done: Voxels of the target grid that are back.
        voxels: All of them.
        seconds: Since the first shard was given out.
        workers: Workers alive.
    """

    shards_done: int
    shards: int
    voxels_done: int
    voxels: int
    seconds: float
    workers: int

    @property
    def voxels_per_second(self) -> float:
        """Voxels kept per second so far."""
        return self.voxels_done / self.seconds if self.seconds else 0.0


@dataclass
class Tally:
    """Totals over the shards that are back.

    Args:
        shards: Their number.
        voxels: Voxels of their cores.
        retries: Shards that were computed again.
        resample_seconds: Of all workers, summed.
        network_seconds: Of all workers, summed.
        peak_rss_mib: Of the largest worker.
        devices: That did the work.
    """

    shards: int = 0
    voxels: int = 0
    retries: int = 0
    resample_seconds: float = 0.0
    network_seconds: float = 0.0
    peak_rss_mib: float = 0.0
    devices: set[str] = field(default_factory=set)

    def count(self, outcome: Outcome) -> None:
        """Add a shard that is back."""
        core: RestoredCore = outcome.value
        self.shards += 1
        self.voxels += core.voxels.size
        self.retries += outcome.retries
        self.resample_seconds += core.resample_seconds
        self.network_seconds += core.network_seconds
        self.peak_rss_mib = max(self.peak_rss_mib, core.rss_mib)
        self.devices.add(core.device)


@dataclass(frozen=True, eq=False)
class Restored:
    """A restored volume and what it took.

    Args:
        voxels: float32 `(i, j, k)` on the target grid, in the unit of the file.
        plan: Its shards.
        seconds: From the first shard given out to the last one back.
        tally: Totals over the shards.
    """

    voxels: NDArray[np.float32]
    plan: ShardPlan
    seconds: float
    tally: Tally

    @property
    def voxels_per_second(self) -> float:
        """Voxels kept per second."""
        return self.voxels.size / self.seconds


def plan_restoration(
    volume: Volume,
    target: Grid,
    network: NetworkFile,
    resources: Resources,
    *,
    axes: NetworkAxes | None = None,
    name: str,
) -> ShardPlan:
    """Plan the shards of a volume; arguments: `restore_volume`.

    Raises:
        InputError: The budget holds no shard.
    """
    target_shape = (axes or network_axes(volume.grid)).network_shape(target.shape)
    held = volume.voxels.size * 4 * (2 if network.needs_acquisition else 1)
    resident = resident_bytes(held, gpus=resources.gpus_per_worker)
    return plan_shards(target_shape, network.cost, resources.memory_budget_mib, resident_bytes=resident, name=name)


def restore_volume(
    volume: Volume,
    target: Grid,
    network: NetworkFile,
    resources: Resources,
    *,
    name: str,
    axes: NetworkAxes | None = None,
    intensity: Intensity | None = None,
    acquisition: Degradation | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Restored:
    """Restore a volume through Ray; the same bytes from any number of workers.

    Call it within `cluster()`.

    Args:
        volume: The input.
        target: The grid to restore on, over the same field of view.
        network: The restorer.
        resources: Workers, what each requests, and the memory budget.
        name: The volume, for messages.
        axes: Map between file axes and network axes; from the volume's grid by default.
        intensity: The intensities that the network sees as 0 and 1; found in the volume by default.
        acquisition: What leads from the target grid to the volume, for networks that go by it.
        on_progress: Called whenever a shard is back.

    Raises:
        InputError: The budget holds no shard, or the model cannot be loaded.
        ConfigError: The cluster has no room for the workers.
        WorkerError: A shard failed on every try.
        NotFiniteError: A restored voxel is NaN or infinite.
    """
    axes = axes or network_axes(volume.grid)
    plan = plan_restoration(volume, target, network, resources, axes=axes, name=name)
    # Workers map a contiguous array; any other would be copied for every shard.
    voxels = np.ascontiguousarray(axes.to_network(volume.voxels))
    known = acquisition if network.needs_acquisition else None
    coarse = coarse_volume(voxels, plan.target_shape, intensity or find_intensity(volume.voxels), known)
    restored = np.empty(target.shape, np.float32)
    canvas = axes.to_network(restored)

    tally = Tally()
    with restorers(network, resources, len(plan.shards)) as pool:
        shared = share(coarse)
        jobs = (
            Job(shard, (shared, shard), len(run) - place, plan.work_of(shard), plan.lead)
            for run in runs(plan.shards)
            for place, shard in enumerate(run, start=1)
        )
        for outcome in pool.work(jobs):
            if isinstance(outcome.error, NotFiniteError):
                raise NotFiniteError(f"Cannot restore {name}: {outcome.error.problem}", outcome.error.remedy)
            if outcome.error is not None:
                raise outcome.error
            canvas[tuple(slice(*side) for side in outcome.key.core)] = outcome.value.voxels
            tally.count(outcome)
            if on_progress is not None:
                counts = tally.shards, len(plan.shards), tally.voxels, restored.size
                on_progress(Progress(*counts, pool.seconds, pool.alive))
        seconds = pool.seconds
    return Restored(restored, plan, seconds, tally)


@contextmanager
def restorers(
    network: NetworkFile, resources: Resources, shards: int, *, elastic: bool = False
) -> Iterator[WorkerPool]:
    """Start workers that hold a network, at most one per shard; shut them down at the end.

    Args:
        network: The restorer.
        resources: Workers, and what each requests.
        shards: To be restored.
        elastic: Start as many workers as the cluster has room for, now and later, instead of `resources.workers`.

    Raises:
        ConfigError: The cluster has no room for the workers and cannot make it.
    """
    request = restoring_request(resources)
    require_room(1 if elastic else resources.workers, request)
    model = share(network.content)
    pool = WorkerPool(
        lambda: RemoteWorker(worker_restorer, (network.name, model, request.cpus, *network.arithmetic), request),
        min(MOST_WORKERS if elastic else resources.workers, shards),
        retries=resources.retries,
        patience=resources.patience_seconds,
        at_once=room(request),
    )
    try:
        yield pool
    finally:
        pool.shut_down()
