"""Records of a rehearsal: a job in small, one training step and one shard, of which nothing is kept."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class BuiltNetwork:
    """The network of a configuration, built on the devices that would train it.

    Args:
        replicas: Model replicas.
        device: Kind of device, "GPU" or "CPU".
        threads: CPU threads of the node.
        parameters: Trainable weights.
        optimizer_values: Numbers that the optimizer keeps.
        latent_shape: Of the latent that a replica makes of its patches, `(batch, depth, height, width, channels)`.
        stage_shapes: Of what each stage makes of it, likewise.
        content: The untrained network as a `.keras` file.
        idle_bytes: Memory that the process holds before it has seen a patch.
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
    """A training step that was taken and thrown away.

    Args:
        loss: Of the first step.
        fill_seconds: For the first blocks that patches are cut from.
        first_seconds: Of the first step, with tracing.
        step_seconds: Of a step thereafter, while no patches are drawn.
        patch_seconds: Of one CPU thread for the patches of a step, with their share of blocks.
        replica_bytes: Memory that steps took beyond what was held before, for each replica.
    """

    loss: float
    fill_seconds: float
    first_seconds: float
    step_seconds: float
    patch_seconds: float
    replica_bytes: int


@dataclass(frozen=True)
class RehearsedShard:
    """A shard that was restored and thrown away.

    Args:
        first_seconds: Of the first time, with warming up.
        seconds: Of a time thereafter.
        shard_bytes: Memory that it took beyond the idle worker.
    """

    first_seconds: float
    seconds: float
    shard_bytes: int
