"""Resources of the cluster: what its nodes have, what the parts of a run request, and whether there is room."""

from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import available_resources_per_node

from configs.errors import ConfigError
from configs.schema import Resources, RunConfig
from tasks.machine.check import counted
from workflow.cluster.autoscaler import could_hold

MIB = 2**20
LEAST_STEPS = 100  # of a training on CPUs, to make up for the start of a process
NODE_LABEL = "ray.io/node-id"  # which Ray gives every node


@dataclass(frozen=True)
class Request:
    """Request of one worker to the cluster: CPU threads, GPUs, and MiB of memory reserved for it alone.

    Ids of nodes in `excluded` are those on which it must not be placed.
    """

    cpus: int = 1
    gpus: int = 0
    memory_mib: int = 0
    excluded: frozenset[str] = frozenset()

    @property
    def options(self) -> dict[str, Any]:
        """The same as options of a Ray task or actor."""
        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus, "memory": self.memory_mib * MIB}
        if self.excluded:
            options["label_selector"] = {NODE_LABEL: f"!in({','.join(sorted(self.excluded))})"}
        return options

    @property
    def bundle(self) -> dict[str, float]:
        """The same as resources of Ray."""
        bundle = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_mib * MIB}
        return {name: float(amount) for name, amount in bundle.items() if amount}

    def __str__(self) -> str:
        memory = f"{self.memory_mib} MiB" if self.memory_mib else ""
        *most, last = filter(None, (counted(self.cpus, "CPU"), counted(self.gpus, "GPU"), memory))
        return f"{', '.join(most)} and {last}"


@dataclass(frozen=True)
class Node:
    """A node that is alive: its host, the resources that Ray hands out, and whether the driver is on it (`here`).

    Of its CPUs, `free_cpus` were not in use a moment ago.
    """

    id: str
    name: str
    address: str
    cpus: int
    gpus: int
    memory_bytes: int
    object_store_bytes: int
    here: bool
    free_cpus: int = 0

    def room(self, request: Request) -> int:
        """Workers of a request that the node can hold at a time."""
        if self.id in request.excluded:
            return 0
        memory = self.memory_bytes, request.memory_mib * MIB
        pairs = (self.cpus, request.cpus), (self.gpus, request.gpus), memory
        return min(available // needed for available, needed in pairs if needed)


def inventory() -> tuple[Node, ...]:
    """Return the nodes of the cluster. Call it within `cluster()`."""
    own = ray.get_runtime_context().get_node_id()
    free = available_resources_per_node()
    return tuple(
        Node(
            id=node["NodeID"],
            name=node["NodeManagerHostname"],
            address=node["NodeManagerAddress"],
            cpus=int(node["Resources"].get("CPU", 0)),
            gpus=int(node["Resources"].get("GPU", 0)),
            memory_bytes=int(node["Resources"].get("memory", 0)),
            object_store_bytes=int(node["Resources"].get("object_store_memory", 0)),
            here=node["NodeID"] == own,
            # Ray leaves out what is in use to the last, and a node that has not reported yet.
            free_cpus=int(free.get(node["NodeID"], node["Resources"]).get("CPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    )


def room(request: Request) -> int:
    """Return how many workers of a request the nodes of the cluster hold, without those that it may add."""
    return sum(node.room(request) for node in inventory())


def require_room(workers: int, request: Request) -> None:
    """Check that the cluster can ever hold so many workers, after it has grown if it can: Ray would wait forever.

    Raises:
        ConfigError: It cannot; the message says what the cluster has.
    """
    nodes = inventory()
    found = sum(node.room(request) for node in nodes)
    if found < workers and not (grows := could_hold([request.bundle] * workers)):
        memory = sum(node.memory_bytes for node in nodes) // MIB if request.memory_mib else 0
        total = Request(sum(node.cpus for node in nodes), sum(node.gpus for node in nodes), memory)
        limit = ", and its autoscaler cannot add enough" if grows is False else ""
        raise ConfigError(
            f"Cannot start {counted(workers, 'worker')} of {request} each: the cluster has {total} on"
            f" {counted(len(nodes), 'node')}, room for {found}{limit}.",
            "Ask for fewer workers or less for each, or add nodes.",
        )


def training_request(config: RunConfig, excluded: frozenset[str] = frozenset()) -> Request:
    """Request of a training: one GPU per replica where the cluster has GPUs, and the CPUs that the workers would have.

    Without `training.replicas`, all GPUs of the node that has most, of those that are not excluded. More replicas than
    any node has GPUs become logical CPU devices if there is no GPU at all, else the cluster refuses. With GPUs it is
    at least the share of a node's CPUs that goes with them, as far as it is free: they draw patches.
    """
    nodes = [node for node in inventory() if node.id not in excluded]
    most = max((node.gpus for node in nodes), default=0)
    gpus = (config.training.replicas or most) if most else 0
    cpus = config.resources.workers * config.resources.cpus_per_worker
    shares = [min(node.cpus * gpus // node.gpus, node.free_cpus) for node in nodes if gpus and node.gpus >= gpus]
    return Request(max(cpus, min(shares, default=0)), gpus, excluded=excluded)


def drawing_processes(request: Request, steps: int) -> int:
    """Processes that draw the patches of a training of so many steps.

    With GPUs one for each CPU but that of the training itself, else one, which takes less processor time than threads:
    they wait for each other.
    """
    if request.gpus:
        return max(1, request.cpus - 1)
    return int(steps >= LEAST_STEPS)


def restoring_request(resources: Resources) -> Request:
    """Request of a worker that restores shards."""
    return Request(resources.cpus_per_worker, resources.gpus_per_worker, resources.memory_budget_mib)
