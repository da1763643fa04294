"""The placement of a restoration: on processes of this machine or workers of a cluster, on CPUs or GPUs."""

from dataclasses import dataclass
from typing import Literal

from configs.schema import Resources
from tasks.machine.gpus import card_budget_mib, cards
from workflow.restore.processes import spread

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


def placed(resources: Resources, given: Given, *, joins: bool) -> tuple[Place, Resources]:
    """Choose where to restore, and with which resources.

    GPUs of this machine are used, by one process each, unless workers of a cluster or no GPUs are asked for. Workers of
    a Ray that is started here have a GPU each if there are enough; those of another cluster have what is asked for.

    Args:
        resources: Whose other fields stay.
        given: What was asked for.
        joins: Whether there is a cluster to join.
    """
    found = () if joins or given.gpus is not None else cards()
    if joins or given.workers or given.gpus:
        enough = given.workers is not None and len(found) >= given.workers
        gpus = int(enough) if given.gpus is None else given.gpus
        return "cluster", resources.model_copy(update={"gpus_per_worker": gpus})
    if found and given.budget_mib is None:
        resources = resources.model_copy(update={"memory_budget_mib": card_budget_mib(found)})
    return "processes", spread(resources, given.threads, len(found))
