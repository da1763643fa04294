"""The network that would train: its stages by arithmetic against TensorFlow's own, and it as a model to plan with."""

from dataclasses import replace

from configs.schema import RunConfig
from models.stages.report import describe
from models.stages.stage import network_stages
from tasks.artifacts.model_card import make_card
from tasks.artifacts.network_file import NetworkFile, parse_network
from tasks.rehearsal import BuiltNetwork
from workflow.dry_run.checklist import Checklist, counted
from workflow.dry_run.rehearsals import TrainingRehearsalWorker

UNTRAINED = "untrained.keras"
REMEDY = "Change network.stages; `voxlift shapes` explains them."


def check_stages(checks: Checklist, config: RunConfig, stand: TrainingRehearsalWorker) -> BuiltNetwork | None:
    """Build the network on its devices and hold the shapes that TensorFlow infers against integers alone.

    Returns:
        The network; None if it cannot be built.
    """
    network, training = config.network, config.training
    stages = network_stages(network)
    built = None
    with checks.trying("stages", "shape arithmetic against the network built by TensorFlow", REMEDY) as attempt:
        built = stand.network()
        depth, height, width = (
            size // stride for size, stride in zip(training.patch, network.total_stride, strict=True)
        )
        latent = (training.batch_size // built.replicas, depth, height, width, network.latent_filters)
        report = describe(latent, stages)
        for name, predicted, real in zip(
            ["the latent", *(f"stage {number}" for number in range(1, len(stages) + 1))],
            [latent, *(stage.output_shape for stage in report.stages)],
            [built.latent_shape, *built.stage_shapes],
            strict=True,
        ):
            if tuple(predicted) != tuple(real):
                attempt.failure(
                    f"Cannot trust the network: {name} is {_by(real)}, not {_by(predicted)} as predicted.", REMEDY
                )
        attempt.ok(" → ".join(_by(shape) for shape in (latent, *(stage.output_shape for stage in report.stages))))
        attempt.ok(f"{built.parameters} weights, {counted(built.replicas, 'replica')} on the {built.device}")
        for warning in report.warnings:
            attempt.warning(warning, REMEDY)
    return built


def untrained_network(
    config: RunConfig, built: BuiltNetwork, volumes: int, spacing: tuple[float, float] | None
) -> NetworkFile:
    """The network as its training would leave it, but for the weights.

    Args:
        config: The run.
        built: As a worker built it.
        volumes: How many train.
        spacing: Least and most mm per voxel of them.
    """
    parsed = parse_network(UNTRAINED, built.content)
    return replace(parsed, card=make_card(config, built.parameters, 0, volumes, spacing))


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
