"""The placement of a restoration: on processes of this machine or workers of a cluster, on CPUs or GPUs."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from rich.console import Console

from configs.schema import Resources
from tasks.machine.gpus import card_budget_mib, cards
from workflow.cluster import cluster
from workflow.cluster.resources import Node, inventory, restoring_request
from workflow.restore.processes import THREADS, spread
from workflow.restore.restoration import MOST_WORKERS
from workflow.terminal.progress import entering

Place = Literal["cluster", "processes"]


@dataclass(frozen=True)
class Given:
    """Resources as they were asked for; None leaves the choice to the machine.

    Args:
        workers: Their number.
        threads: CPU threads of each.
        gpus: GPUs of each.
        budget_mib: Memory of a shard.
    """

    workers: int | None = None
    threads: int | None = None
    gpus: int | None = None
    budget_mib: int | None = None


@contextmanager
def joined(console: Console) -> Iterator[Sequence[Node] | None]:
    """Join the cluster at RAY_ADDRESS for a `with` block; yields its nodes.

    Yields:
        None without RAY_ADDRESS; no nodes where it is "local", which stands for a Ray that is started for the workers.

    Raises:
        ConfigError: The cluster does not answer or refuses access.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address or address == "local":
        yield () if address else None
        return
    with entering(console, "Joining Ray", cluster()):
        yield inventory()


def placed(resources: Resources, given: Given, nodes: Sequence[Node] | None = None) -> tuple[Place, Resources]:
    """Choose where to restore, and with which resources.

    GPUs of this machine are used, by one process each, unless workers of a cluster or no GPUs are asked for. Workers of
    a Ray that is started here, or of a cluster, have a GPU each if there are enough.

    Args:
        resources: Whose other fields stay.
        given: What was asked for.
        nodes: Of the cluster that was joined; None where there is none.
    """
    if nodes is not None:
        return "cluster", _spread_over(nodes, resources, given)
    found = cards() if given.gpus is None else ()
    if given.workers or given.gpus:
        enough = given.workers is not None and len(found) >= given.workers
        gpus = int(enough) if given.gpus is None else given.gpus
        return "cluster", resources.model_copy(update={"gpus_per_worker": gpus})
    if found and given.budget_mib is None:
        resources = resources.model_copy(update={"memory_budget_mib": card_budget_mib(found)})
    return "processes", spread(resources, given.threads, len(found))


def _spread_over(nodes: Sequence[Node], resources: Resources, given: Given) -> Resources:
    """Divide a cluster among as many workers as were asked for, or one for each GPU or, without any, for each CPU."""
    gpus = given.gpus
    if gpus is None:
        gpus = int(sum(node.gpus for node in nodes) >= (given.workers or 1))
    resources = resources.model_copy(update={"gpus_per_worker": gpus})
    if given.workers:
        return resources
    if gpus and not given.threads:  # the CPUs that go with them on any node; without GPUs they could change last bits
        shares = [node.cpus * gpus // node.gpus for node in nodes if node.gpus >= gpus]
        threads = max(1, min(THREADS, min(shares, default=1)))
        resources = resources.model_copy(update={"cpus_per_worker": threads})
    workers = min(MOST_WORKERS, sum(node.room(restoring_request(resources)) for node in nodes))
    # Where there is no room for any, the cluster may grow, or what it lacks is an error.
    return resources.model_copy(update={"workers": workers}) if workers else resources
