"""One training step and one shard, taken by workers like those of the real run and thrown away."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from configs.schema import Resources, RunConfig
from tasks.artifacts.network_file import NetworkFile
from tasks.rehearsal import BuiltNetwork, RehearsedShard, RehearsedStep
from tasks.training.start import shard_rehearsal, training_rehearsal
from workflow.cluster import RemoteWorker, WorkerError, fetch, first_answers, require_room, share
from workflow.cluster.resources import restoring_request, training_request
from workflow.dry_run.planned_volumes import PlannedVolume
from workflow.train.data import TrainingSource


class RehearsalWorker:
    """A worker that rehearses; what it is asked is answered, or it is given up.

    Args:
        worker: As it was started.
        patience: Seconds for an answer.
    """

    def __init__(self, worker: RemoteWorker, patience: float) -> None:
        self._worker, self._patience = worker, patience
        self._hired = time.perf_counter()
        self._made: float | None = None

    def ready(self) -> None:
        """Wait until it has made its tool.

        Raises:
            Exception: What making it raised.
        """
        if self._made is None:
            self._answer(self._worker.loading)
            self._made = time.perf_counter()

    @property
    def start_seconds(self) -> float:
        """From hiring it until it had made its tool."""
        return (self._made or time.perf_counter()) - self._hired

    def ask(self, *arguments: Any) -> Any:  # noqa: ANN401 - whatever the tool takes and returns
        """Call the tool.

        Raises:
            WorkerError: It died or did not answer.
            Exception: What the tool raised.
        """
        self.ready()
        return self._answer(self._worker.call(arguments))

    def _answer(self, answer: Any) -> Any:  # noqa: ANN401 - an answer of the cluster
        if not first_answers([answer], self._patience):
            raise WorkerError(f"A worker did not answer for {self._patience:g} s.", "Look at the load of the cluster.")
        return fetch(answer)


@contextmanager
def training_stand(config: RunConfig) -> Iterator["TrainingRehearsalWorker"]:
    """Start the process of a training; end it afterwards.

    Raises:
        ConfigError: The cluster has no room for it.
    """
    request = training_request(config)
    require_room(1, request)
    worker = RemoteWorker(training_rehearsal, (config,), request)
    try:
        yield TrainingRehearsalWorker(worker, config.resources.patience_seconds)
    finally:
        worker.end()


class TrainingRehearsalWorker(RehearsalWorker):
    """The process of a training."""

    def network(self) -> BuiltNetwork:
        """Build the network on its devices."""
        built: BuiltNetwork = self.ask()
        return built

    def step(self, lesson: TrainingSource) -> RehearsedStep:
        """Take a step on patches of one volume."""
        taken: RehearsedStep = self.ask([lesson.training])
        return taken


def rehearse_shard(volume: PlannedVolume, network: NetworkFile, resources: Resources) -> tuple[RehearsedShard, float]:
    """Restore a shard from the middle of a volume.

    Returns:
        What it took, and the seconds in which its worker started.

    Raises:
        ConfigError: The cluster has no room for the worker.
    """
    request = restoring_request(resources)
    require_room(1, request)
    arguments = (network.name, share(network.content), request.cpus, network.cost.field.strides)
    worker = RemoteWorker(shard_rehearsal, arguments, request)
    try:
        stand = RehearsalWorker(worker, resources.patience_seconds)
        coarse = volume.coarse()
        shard: RehearsedShard = stand.ask(share(coarse), volume.plan.shards[len(volume.plan.shards) // 2])
        return shard, stand.start_seconds
    finally:
        worker.end()
