"""A training step and a shard, taken by workers like those of the real run and thrown away."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from configs.schema import Resources, RunConfig
from models.stages.report import describe
from models.stages.stage import network_stages
from tasks.artifacts.network_file import NetworkFile
from tasks.machine.check import Checklist, counted
from tasks.rehearsal import BuiltNetwork, RehearsedShard
from tasks.training.start import shard_rehearsal, training_rehearsal
from workflow.checks.plans import PlannedVolume
from workflow.cluster import RemoteWorker, Request, WorkerError, fetch, first_answers, require_room, share
from workflow.cluster.resources import restoring_request, training_request

REMEDY = "Change network.stages; `voxlift shapes` explains them."


class RehearsalWorker(AbstractContextManager["RehearsalWorker"]):
    """A worker that rehearses, until the block ends; what it is asked is answered, or it is given up.

    Args:
        tool: Makes what it calls.
        arguments: Of the tool.
        request: To the cluster.
        patience: Seconds for an answer.

    Raises:
        ConfigError: The cluster has no room for it.
    """

    def __init__(self, tool: Callable[..., Any], arguments: tuple[Any, ...], request: Request, patience: float) -> None:
        require_room(1, request)
        self._patience, self._began = patience, time.perf_counter()
        self._worker = RemoteWorker(tool, arguments, request)
        self.start_seconds: float | None = None

    def __exit__(self, *_: object) -> None:
        self._worker.end()

    def ask(self, *arguments: Any) -> Any:  # noqa: ANN401 - whatever the tool takes and returns
        """Call the tool, once it is made.

        Raises:
            WorkerError: It died or did not answer.
            Exception: What the tool, or making it, raised.
        """
        if self.start_seconds is None:
            self._answer(self._worker.loading)
            self.start_seconds = time.perf_counter() - self._began
        return self._answer(self._worker.call(arguments))

    def _answer(self, answer: Any) -> Any:  # noqa: ANN401 - an answer of the cluster
        if not first_answers([answer], self._patience):
            raise WorkerError(f"A worker did not answer for {self._patience:g} s.", "Look at the load of the cluster.")
        return fetch(answer)


def training_worker(config: RunConfig) -> RehearsalWorker:
    """Start the process of a training."""
    return RehearsalWorker(training_rehearsal, (config,), training_request(config), config.resources.patience_seconds)


def check_stages(checks: Checklist, config: RunConfig, worker: RehearsalWorker) -> BuiltNetwork | None:
    """Build the network on its devices and compare the shapes that TensorFlow infers with integer arithmetic.

    Returns:
        The network; None if it cannot be built.
    """
    network, training = config.network, config.training
    stages = network_stages(network)
    built: BuiltNetwork | None = None
    with checks.trying("stages", "shape arithmetic against the network built by TensorFlow", REMEDY) as attempt:
        built = worker.ask()
        depth, height, width = (
            size // stride for size, stride in zip(training.patch, network.total_stride, strict=True)
        )
        latent = (training.batch_size // built.replicas, depth, height, width, network.latent_filters)
        report = describe(latent, stages)
        predicted = [latent, *(stage.output_shape for stage in report.stages)]
        for number, shapes in enumerate(zip(predicted, [built.latent_shape, *built.stage_shapes], strict=True)):
            expected, real = map(_by, shapes)
            if expected != real:
                name = f"stage {number}" if number else "the latent"
                attempt.failure(f"Cannot trust the network: {name} is {real}, not {expected} as predicted.")
        attempt.ok(" → ".join(map(_by, predicted)))
        attempt.ok(f"{built.parameters} weights, {counted(built.replicas, 'replica')} on the {built.device}")
        for warning in report.warnings:
            attempt.warning(warning)
    return built


def rehearse_shard(volume: PlannedVolume, network: NetworkFile, resources: Resources) -> tuple[RehearsedShard, float]:
    """Restore a shard from the middle of a volume.

    Returns:
        What it took, and the seconds in which its worker started.

    Raises:
        ConfigError: The cluster has no room for the worker.
    """
    request = restoring_request(resources)
    arguments = (network.name, share(network.content), request.cpus, network.cost.field.strides)
    with RehearsalWorker(shard_rehearsal, arguments, request, resources.patience_seconds) as worker:
        middle = volume.plan.shards[len(volume.plan.shards) // 2]
        shard: RehearsedShard = worker.ask(share(volume.coarse()), middle)
        return shard, worker.start_seconds or 0.0


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
