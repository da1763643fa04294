"""Restore in this process: the counterpart of a pool of workers, for one who has no cluster."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache

from configs.precision import Precision
from configs.schema import Resources
from tasks.artifacts.network_file import NetworkFile
from tasks.sharding.restore import Restorer
from workflow.restore.worker_pool import Job, Outcome


class LocalPool:
    """Takes jobs as `WorkerPool` does, and works on them here, one after another.

    Args:
        restorer: The tool.
    """

    alive = 1

    def __init__(self, restorer: Restorer) -> None:
        self._restorer, self._began = restorer, time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the pool was made."""
        return time.monotonic() - self._began

    def wait_for_place(self) -> None:
        """Return at once: this process is there."""

    def shut_down(self) -> None:
        """Leave this process as it is."""

    def work(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Yield the outcome of each job; an error stays with its job."""
        for job in jobs:
            try:
                yield Outcome(job.key, self._restorer(*job.arguments))
            except Exception as error:  # noqa: BLE001 - any error fails this job alone
                yield Outcome(job.key, error=error)


@contextmanager
def local_restorer(network: NetworkFile, _: Resources, __: int) -> Iterator[LocalPool]:
    """Load a network here, once however often it is used; with the threads that TensorFlow has in this process."""
    yield LocalPool(_loaded(network.name, network.content, *network.arithmetic))


@lru_cache(maxsize=2)
def _loaded(name: str, content: bytes, flips: int, precision: Precision) -> Restorer:
    return Restorer(name, content, None, flips, precision)
