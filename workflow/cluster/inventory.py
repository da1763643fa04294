"""Inventory of the cluster, as Ray reports it."""

from dataclasses import dataclass

import ray


@dataclass(frozen=True)
class Node:
    """A node that is alive.

    Args:
        name: Of its host.
        cpus: That Ray hands out.
        gpus: That Ray hands out.
        memory_bytes: That Ray hands out.
        object_store_bytes: Of its object store.
        here: Whether the driver is on it.
    """

    name: str
    cpus: int
    gpus: int
    memory_bytes: int
    object_store_bytes: int
    here: bool


def inventory() -> tuple[Node, ...]:
    """The nodes of the cluster. Call it within `cluster()`."""
    own = ray.get_runtime_context().get_node_id()
    return tuple(
        Node(
            name=node["NodeManagerHostname"],
            cpus=int(node["Resources"].get("CPU", 0)),
            gpus=int(node["Resources"].get("GPU", 0)),
            memory_bytes=int(node["Resources"].get("memory", 0)),
            object_store_bytes=int(node["Resources"].get("object_store_memory", 0)),
            here=node["NodeID"] == own,
        )
        for node in ray.nodes()
        if node["Alive"]
    )
