"""Doctor checks of Ray: start or join, an answer through the object store, resources, a sharded volume."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.axes import FileShape
from configs.errors import ConfigError
from configs.schema import Resources
from tasks.artifacts.network_file import read_network
from tasks.imaging.resample import resample
from tasks.machine.check import Attempt, Checklist
from tasks.volume.grid import Grid, scaled_grid
from tasks.volume.nifti import Volume
from workflow.checks.cluster import cluster_report
from workflow.cluster import Request, TimedWorker, cluster, require_room, share
from workflow.cluster.resources import Node, inventory, restoring_request
from workflow.restore.restoration import plan_restoration, restore_volume

ROOT = Path(__file__).parents[2]
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Ray keeps its objects
JOIN_SECONDS, ANSWER_SECONDS = 20, 120  # workers load TensorFlow before they answer, on a busy machine slowly
MIB, GIB = 2**20, 2**30
SMALL_STORE = GIB // 2
SENT_BYTES = 8 * MIB
TOLERANCE = 1e-6
PLENTY_MIB = 10_000
COARSE, SCALE = FileShape(23, 30, 32), (2, 2, 2)

ACTOR = "Ray actor", f"sending {SENT_BYTES // MIB} MiB through the object store"
STORE = "object store", f"its size against {SHARED_MEMORY}"
NODES = "nodes", "room for the default workers"
UNITY = "partition of unity", "a volume in shards through Ray and a network that changes nothing"


def ray_checks(identity: Callable[[], Path]) -> Checklist:
    """Start or join Ray once and try it.

    Args:
        identity: Waits for the file of a network that returns its input.
    """
    checks = Checklist()
    with ExitStack() as stack:
        remedy = "Unset RAY_ADDRESS; see the logs that Ray keeps."
        with checks.trying("Ray", "starting it here, or joining RAY_ADDRESS", remedy) as attempt:
            started = time.monotonic()
            address = os.environ.get("RAY_ADDRESS") or "local"
            _require_ray(address)
            stack.enter_context(cluster())
            did = "started here" if address == "local" else f"joined at {address}"
            attempt.ok(f"{did} in {time.monotonic() - started:.1f} s")
        if checks.failures:
            for check in (ACTOR, STORE, NODES, UNITY):
                checks.not_tried(*check, "Ray")
            return checks
        with checks.trying(*ACTOR, "Wait until the cluster is less busy; see Ray's logs.") as actor:
            _actor(actor)
        remedy = "Start Ray with a larger --object-store-memory, on a machine with more memory."
        with checks.trying(*STORE, remedy) as attempt:
            object_store(attempt, inventory(), SHARED_MEMORY)
        with checks.trying(*NODES, "Ask for fewer --workers, or add nodes.") as attempt:
            found, default = cluster_report(inventory()), Resources()
            memory = found.memory_mib * MIB / GIB
            seen = f"{found.nodes} with {found.cpus} CPUs, {found.gpus} GPUs and {memory:.1f} GiB of memory"
            try:
                require_room(default.workers, restoring_request(default))
                attempt.ok(seen)
            except ConfigError as error:
                attempt.warning(seen, str(error))
        if actor.failures:
            checks.not_tried(*UNITY, ACTOR[0])
            return checks
        remedy = "Do not trust restored volumes of this machine; run make test and report what fails."
        with checks.trying(*UNITY, remedy) as attempt:
            _unity(attempt, identity())
    return checks


def _require_ray(address: str) -> None:
    """Join from a process that can be ended first: Ray itself tries for minutes. If it fails, `cluster` reports why."""
    if address == "local":
        return
    script = "from workflow.cluster import cluster\nwith cluster(): pass"
    try:
        subprocess.run(  # noqa: S603 - fixed arguments
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=False, timeout=JOIN_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"Cannot join the Ray cluster at {address}, named by RAY_ADDRESS: what listens there does not answer as Ray"
            f" within {JOIN_SECONDS} s.",
            "Name the head node with the port of its GCS (6379 by default), or unset RAY_ADDRESS to start one here.",
        ) from None


def adder() -> Callable[[NDArray[np.float32]], tuple[float, str]]:
    """Make a tool that returns the sum of an array and the host of its process."""
    return lambda numbers: (float(numbers.sum()), socket.gethostname())


def _actor(attempt: Attempt) -> None:
    started = time.monotonic()
    sent = np.ones(SENT_BYTES // 4, np.float32)
    with TimedWorker(adder, (), Request(), ANSWER_SECONDS) as worker:
        total, host = worker.ask(share(sent))
    seen = f"answered from {host} after {time.monotonic() - started:.1f} s"
    if total == sent.size:
        attempt.ok(seen)
    else:
        attempt.failure(f"{seen}, with other numbers than it was sent")


def object_store(attempt: Attempt, nodes: tuple[Node, ...], shared_memory: Path) -> None:
    """Compare the size of the object store of the driver's node with the free space of the shared memory."""
    size = next((node.object_store_bytes for node in nodes if node.here), 0)
    smallest = min(node.object_store_bytes for node in nodes)
    seen = f"{size / GIB:.1f} GiB here"
    if len(nodes) > 1:
        seen += f", {smallest / GIB:.1f} GiB or more on each of {len(nodes)} nodes"
    if shared_memory.is_dir():
        usage = shutil.disk_usage(shared_memory)
        seen += f", {shared_memory} {usage.total / GIB:.1f} GiB with {usage.free / GIB:.1f} free"
        if usage.free < size:
            needed = ceil(1.1 * size / MIB)
            remedy = f"Remount {shared_memory} with size={needed}m, or docker run --shm-size={needed}m: disk is slower."
            attempt.warning(seen, remedy)
            return
    (attempt.warning if smallest < SMALL_STORE else attempt.ok)(seen)


def _unity(attempt: Attempt, identity: Path) -> None:
    """Restore a volume in shards with the identity network: the result must be the resampled input."""
    voxels = np.random.default_rng(0).gamma(2.0, 40.0, size=COARSE).astype(np.float32)
    volume = Volume(voxels, Grid(COARSE, np.diag([-1.0, 1.2, 2.5, 1.0])))
    target = scaled_grid(volume.grid, SCALE)
    network = read_network(identity)
    plenty = Resources(memory_budget_mib=PLENTY_MIB)
    least = plan_restoration(volume, target, network, plenty, name="the volume").smallest_bytes
    resources = Resources(
        workers=min(2, max(1, sum(node.cpus for node in inventory()))),
        memory_budget_mib=ceil(least / MIB),
        retries=0,
        patience_seconds=ANSWER_SECONDS,
    )
    restored = restore_volume(volume, target, network, resources, name="the volume")
    expected = resample(voxels, target.shape)
    difference = float(np.abs(restored.voxels - expected).max() / np.abs(expected).max())
    seen = f"{len(restored.plan.shards)} shards on {resources.workers} workers, largest difference {difference:.1e}"
    # Not `difference > TOLERANCE`, which is false of NaN.
    (attempt.ok if difference <= TOLERANCE else attempt.failure)(seen)
