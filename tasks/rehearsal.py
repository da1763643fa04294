"""Records of a rehearsal: one training step and one shard, whose results are discarded."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class BuiltNetwork:
    """The network of a configuration, built on the devices that would train it.

    Args:
        replicas: Model replicas.
        device: Kind of device, "GPU" or "CPU".
        threads: CPU threads of the node.
        parameters: Trainable weights.
        optimizer_values: Numbers in the optimizer's state.
        latent_shape: Of the latent of a replica's patches, `(batch, depth, height, width, channels)`.
        stage_shapes: Of the output of each stage, likewise.
        content: The untrained network as a `.keras` file.
        idle_bytes: Memory of the process before its first patch.
    """

    replicas: int
    device: str
    threads: int
    parameters: int
    optimizer_values: int
    latent_shape: tuple[int, ...]
    stage_shapes: tuple[tuple[int, ...], ...]
    content: bytes = field(repr=False)
    idle_bytes: int


@dataclass(frozen=True)
class RehearsedStep:
    """A training step whose result was discarded.

    Args:
        loss: Of the first step.
        fill_seconds: For the first blocks that patches are cropped from.
        first_seconds: Of the first step, with tracing.
        step_seconds: Of a later step, while no patches are drawn.
        patch_seconds: Of one CPU thread for the patches of a step, with their share of blocks.
        replica_bytes: Memory that the steps added, for each replica.
    """

    loss: float
    fill_seconds: float
    first_seconds: float
    step_seconds: float
    patch_seconds: float
    replica_bytes: int


@dataclass(frozen=True)
class RehearsedShard:
    """A restored shard that was discarded.

    Args:
        first_seconds: Of the first restoration, with warm-up.
        seconds: Of a later one.
        shard_bytes: Memory that it took beyond the idle worker.
        device: That did the work.
    """

    first_seconds: float
    seconds: float
    shard_bytes: int
    device: str = "CPU"
