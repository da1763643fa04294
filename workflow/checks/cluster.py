"""Check that the cluster can hold a run: its resources, the batch per device, memory, and shared storage."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from configs.errors import ConfigError
from configs.schema import RunConfig
from tasks.machine.check import Checklist, counted
from tasks.rehearsal import BuiltNetwork
from tasks.sharding.plan import MIB
from workflow.checks.disk import existing_folder
from workflow.cluster import cluster, require_room
from workflow.cluster.resources import Node, inventory, restoring_request, training_request
from workflow.cluster.shared_storage import require_shared


@dataclass(frozen=True)
class ClusterReport:
    """Resources that Ray reports, over all nodes."""

    nodes: int
    cpus: int
    gpus: int
    memory_mib: int
    object_store_mib: int


def cluster_report(nodes: Sequence[Node]) -> ClusterReport:
    """Add up the nodes."""
    return ClusterReport(
        nodes=len(nodes),
        cpus=sum(node.cpus for node in nodes),
        gpus=sum(node.gpus for node in nodes),
        memory_mib=sum(node.memory_bytes for node in nodes) // MIB,
        object_store_mib=sum(node.object_store_bytes for node in nodes) // MIB,
    )


def check_cluster(checks: Checklist, stack: ExitStack) -> tuple[Node, ...]:
    """Join the cluster, or start one, until the stack closes; returns its nodes, none if it cannot be joined."""
    nodes: tuple[Node, ...] = ()
    remedy = "Start the cluster, or unset RAY_ADDRESS to start one here."
    with checks.trying("cluster", "joining RAY_ADDRESS, or starting Ray here", remedy) as attempt:
        stack.enter_context(cluster())
        nodes = inventory()
        found = cluster_report(nodes)
        parts = counted(found.nodes, "node"), counted(found.cpus, "CPU"), counted(found.gpus, "GPU")
        attempt.ok(f"{', '.join(parts)}, {found.memory_mib} MiB of memory")
    return nodes


def check_room(checks: Checklist, config: RunConfig) -> bool:
    """Check that the cluster can place the training and the restoring workers; returns whether it can the training."""
    train, restore, workers = training_request(config), restoring_request(config.resources), config.resources.workers
    tried = f"a training of {train}, {counted(workers, 'restoring worker')} of {restore} each"
    lacking = []
    with checks.trying("room", tried, "Ask for less with --set resources.…, or add nodes.") as attempt:
        for count, request in ((1, train), (workers, restore)):
            try:
                require_room(count, request)
            except ConfigError as error:
                attempt.error(error)
                lacking.append(request)
        attempt.ok("the cluster can place all of them")
    return train not in lacking


def check_replicas(checks: Checklist, config: RunConfig) -> None:
    """Check that the batch divides by the replicas that training would make of the devices."""
    batch, gpus = config.training.batch_size, training_request(config).gpus
    count = gpus or config.training.replicas or 1
    tried = "the batch against the devices of the cluster"
    with checks.trying("replicas", tried, "Set training.batch_size.") as attempt:
        if batch % count:
            attempt.failure(
                f"Cannot train: training.batch_size must divide by the replicas, received {batch} over {count} GPUs.",
                f"Use a batch_size of {-(-batch // count) * count}, or set training.replicas.",
            )
        devices = counted(count, "GPU" if gpus else "CPU replica")
        attempt.ok(f"batch of {batch}, {batch // count} on each of {devices}")


def check_memory(checks: Checklist, nodes: Sequence[Node], built: BuiltNetwork, replica_bytes: int) -> None:
    """Compare the memory that training takes, estimated from the layers, with that of the largest node."""
    remedy = "Use a smaller training.patch or training.batch_size."
    with checks.trying("memory", "what training takes by its layers, against the nodes", remedy) as attempt:
        replicas = f"{replica_bytes / MIB:.0f} MiB for each of {counted(built.replicas, 'replica')}"
        if built.device == "GPU":
            attempt.ok(f"{replicas}; the training step shows whether a GPU holds it")
            return
        needed = built.idle_bytes + built.replicas * replica_bytes
        free = max(node.memory_bytes for node in nodes)
        whole = max(node.memory_bytes + node.object_store_bytes for node in nodes)
        said = f"{needed / MIB:.0f} MiB in all, {replicas}, and the largest node has {free / MIB:.0f} MiB"
        if needed > whole:
            attempt.failure(f"Cannot train: it takes about {said}.")
        elif needed > free:
            attempt.warning(f"{said}; little is left for anything else")
        else:
            attempt.ok(said)


def check_shared(checks: Checklist, nodes: Sequence[Node], config: RunConfig, folder: Path) -> None:
    """Check that enough nodes read and write where the run's folder is or would be."""
    existing = existing_folder(folder)
    if len(nodes) < 2 or not existing.is_dir():
        return
    tried = f"{existing} written and read by each of {len(nodes)} nodes"
    with checks.trying("shared storage", tried, "Put --out on storage that every node mounts.") as attempt:
        left_out: list[str] = []
        require_shared(existing, partial(training_request, config), left_out.append)
        if left_out:
            attempt.warning(" ".join(left_out))
            return
        attempt.ok("every node sees what another writes")
