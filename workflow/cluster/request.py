"""Requests of work to the cluster, and the check that the cluster can ever hold them."""

from dataclasses import dataclass

import ray

from configs.errors import ConfigError
from tasks.machine.check import counted

MIB = 2**20


@dataclass(frozen=True)
class Request:
    """Request of one worker to the cluster: CPU threads, GPUs, and MiB of memory reserved for it alone."""

    cpus: int = 1
    gpus: int = 0
    memory_mib: int = 0

    @property
    def resources(self) -> dict[str, int]:
        """The same in Ray's words, without what is not asked for."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_mib * MIB}
        return {kind: count for kind, count in wanted.items() if count}

    @property
    def options(self) -> dict[str, int]:
        """The same as options of a task or an actor."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "memory": self.memory_mib * MIB}

    def __str__(self) -> str:
        return _amounts(self.cpus, self.gpus, self.memory_mib)


def require_room(workers: int, request: Request) -> None:
    """Check that the cluster can ever hold so many workers: Ray itself would wait forever.

    Raises:
        ConfigError: It cannot; the message says what the cluster has.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(_room(node, request) for node in nodes)
    if room < workers:
        cpus, gpus, memory = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("CPU", "GPU", "memory"))
        has = _amounts(cpus, gpus, memory // MIB if request.memory_mib else 0)
        raise ConfigError(
            f"Cannot start {counted(workers, 'worker')} of {request} each: the cluster has {has} on"
            f" {counted(len(nodes), 'node')}, room for {room}.",
            "Ask for fewer workers or less for each, or add nodes.",
        )


def most_gpus_on_a_node() -> int:
    """GPUs of the node that has most of them."""
    return max(int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"])


def _room(node: dict[str, float], request: Request) -> int:
    return min(int(node.get(kind, 0) // count) for kind, count in request.resources.items())


def _amounts(cpus: int, gpus: int, memory_mib: int) -> str:
    amounts = [counted(cpus, "CPU"), counted(gpus, "GPU"), *([f"{memory_mib} MiB"] if memory_mib else [])]
    return f"{', '.join(amounts[:-1])} and {amounts[-1]}"
