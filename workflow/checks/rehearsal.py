"""A training step and a shard, taken by workers like those of the real run and thrown away."""

from configs.schema import Resources, RunConfig
from models.stages.report import describe
from models.stages.stage import network_stages
from models.stages.wording import shape_text
from tasks.artifacts.network_file import NetworkFile
from tasks.machine.check import Checklist, counted
from tasks.rehearsal import BuiltNetwork, RehearsedShard
from tasks.training.start import shard_rehearsal
from workflow.checks.plans import PlannedVolume
from workflow.cluster import TimedWorker, share
from workflow.cluster.resources import restoring_request

REMEDY = "Change network.stages; `voxlift shapes` explains them."


def check_stages(checks: Checklist, config: RunConfig, worker: TimedWorker) -> BuiltNetwork | None:
    """Build the network and compare the shapes that TensorFlow infers with integer arithmetic; None if it cannot be."""
    network, training = config.network, config.training
    stages = network_stages(network)
    built: BuiltNetwork | None = None
    with checks.trying("stages", "shape arithmetic against the network built by TensorFlow", REMEDY) as attempt:
        built = worker.ask()
        depth, height, width = (size // by for size, by in zip(training.patch, network.total_stride, strict=True))
        latent = (training.batch_size // built.replicas, depth, height, width, network.latent_filters)
        report = describe(latent, stages)
        predicted = [latent, *(stage.output_shape for stage in report.stages)]
        for number, shapes in enumerate(zip(predicted, [built.latent_shape, *built.stage_shapes], strict=True)):
            expected, real = map(shape_text, shapes)
            if expected != real:
                name = f"stage {number}" if number else "the latent"
                attempt.failure(f"Cannot trust the network: {name} is {real}, not {expected} as predicted.")
        attempt.ok(" → ".join(map(shape_text, predicted)))
        attempt.ok(f"{built.parameters} weights, {counted(built.replicas, 'replica')} on the {built.device}")
        for warning in report.warnings:
            attempt.warning(warning)
    return built


def rehearse_shard(volume: PlannedVolume, network: NetworkFile, resources: Resources) -> tuple[RehearsedShard, float]:
    """Restore a shard from the middle of a volume; returns what it took, and the seconds that its worker took to start.

    Raises:
        ConfigError: The cluster has no room for the worker.
    """
    request = restoring_request(resources)
    arguments = (network.name, share(network.content), request.cpus, network.cost.field.strides)
    with TimedWorker(shard_rehearsal, arguments, request, resources.patience_seconds) as worker:
        middle = volume.plan.shards[len(volume.plan.shards) // 2]
        shard: RehearsedShard = worker.ask(share(volume.coarse()), middle)
        return shard, worker.start_seconds
