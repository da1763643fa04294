"""Typed configuration of a run: each section of a configuration file is a class here; unknown keys are errors."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, GetPydanticSchema, model_validator
from pydantic_core.core_schema import no_info_after_validator_function

from configs.axes import AXES, NetworkShape, total_stride
from configs.data import Augmentation, Data
from configs.degradation import NamedDegradation
from configs.frozen import Frozen

PositiveTriple = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]

PatchShape = Annotated[
    NetworkShape,
    GetPydanticSchema(
        lambda _, handler: no_info_after_validator_function(lambda sizes: NetworkShape(*sizes), handler(PositiveTriple))
    ),
]

NotNegative = Annotated[int, Field(ge=0)]


class StageConfig(Frozen):
    """One transposed convolution of the upsampler."""

    filters: int = Field(gt=0)
    kernel_size: PositiveTriple
    strides: PositiveTriple


class Network(Frozen):
    """The restorer: the upsampler's stages, coarse to fine; the encoder is their mirror image.

    Attributes:
        latent_filters: Channels of the latent.
        stages: From the latent to one channel on the target grid.
        convolutions: Convolutions of 3x3x3 that follow each change of shape, on both ways: one number for all levels,
            or one for each from the latent to the level below the target grid. Coarse levels cost little time but much
            reach, and so much halo.
        skip: How a stage joins the encoder's tensor of the same shape.
        activation: What follows every convolution but the last.
        input: "interpolated": the coarse volume on the target grid; "consistent": corrected by what is known of the
            acquisition, so that one network serves several of them.
    """

    latent_filters: int = Field(64, gt=0)
    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1)] = (
        StageConfig(filters=32, kernel_size=(3, 4, 4), strides=(1, 2, 2)),
        StageConfig(filters=32, kernel_size=(4, 4, 4), strides=(2, 2, 2)),
        StageConfig(filters=24, kernel_size=(4, 4, 4), strides=(2, 2, 2)),
        StageConfig(filters=1, kernel_size=(4, 4, 4), strides=(2, 2, 2)),
    )
    convolutions: NotNegative | tuple[NotNegative, ...] = (0, 0, 1, 1)
    skip: Literal["concatenate", "add"] = "add"
    activation: Literal["leaky_relu", "relu", "gelu", "silu"] = "leaky_relu"
    input: Literal["interpolated", "consistent"] = "interpolated"

    @model_validator(mode="after")
    def _a_number_per_level(self) -> Self:
        if isinstance(self.convolutions, tuple) and len(self.convolutions) != len(self.stages):
            raise ValueError(
                f"convolutions must be one number or one for each of the {len(self.stages)} levels from the latent on,"
                f" received {len(self.convolutions)} numbers"
            )
        return self

    @property
    def convolutions_per_level(self) -> tuple[int, ...]:
        """Convolutions at each level, the latent first."""
        return self.convolutions if isinstance(self.convolutions, tuple) else (self.convolutions,) * len(self.stages)

    @property
    def total_stride(self) -> NetworkShape:
        """Voxels of the target grid per voxel of the latent, along depth, height and width."""
        return total_stride(stage.strides for stage in self.stages)


class Checkpoints(Frozen):
    """State of a training that it can be resumed from.

    Attributes:
        every: Steps between checkpoints; 0 leaves none.
        keep: The last so many are kept.
    """

    every: int = Field(100, ge=0)
    keep: int = Field(2, gt=0)


class EarlyStopping(Frozen):
    """When training ends before its last step: once the validation volumes are restored no better.

    Attributes:
        every: Steps between validations of whole volumes.
        patience: Validations without a better one before it stops; the best weights are kept.
    """

    every: int = Field(100, gt=0)
    patience: int = Field(3, gt=0)


LossName = Literal["l1", "l2", "charbonnier", "gradient", "ssim", "consistency", "null_space"]


def _present_names(losses: object) -> object:
    """Accept the name that version 0.1.0 gave to `null_space`."""
    if not isinstance(losses, dict):
        return losses
    return {"null_space" if name == "unseen" else name: weight for name, weight in losses.items()}


def _off(value: object) -> object:
    """Read what YAML makes of the word off."""
    return "off" if value is False else value


Losses = Annotated[dict[LossName, Annotated[float, Field(gt=0)]], Field(min_length=1), BeforeValidator(_present_names)]


class Training(Frozen):
    """Training of the restorer, for a fixed number of steps from a seed.

    Attributes:
        steps: Optimizer steps.
        batch_size: Patches per step over all replicas; it must divide by the replicas.
        patch: Shape of a patch along depth, height and width; multiples of the network's total stride.
        losses: What is minimised: a weight for each named error. `null_space` is the squared error that the data
            consistency correction leaves.
        weigh_patches: Whether a patch counts by its share of the foreground; otherwise all count the same.
        relative: Power of the squared error of a patch's input that its loss is divided by: with 0 sharp anatomy counts
            most, with 1 smooth anatomy counts as much.
        optimizer: Which.
        learning_rate: Peak of the learning rate, reached after the warm-up and left along a cosine.
        warmup_steps: Steps over which the learning rate rises from zero.
        weight_decay: Of AdamW.
        regularisation: Weight of the sum of the squared kernels, added to the loss.
        clip_norm: The gradient is scaled down to this norm over all weights. With the default losses it is about 0.003;
            without a limit close above that, a few hard patches in a row can drive the weights off for good.
        average: Momentum of the moving average of the weights, which is what is saved; 0 saves the last weights.
        mixed_precision: Whether layers compute in half precision: "auto" on GPUs that have units for it. What a
            training loses by it has not been measured.
        seed: Of the weights, the patches and their augmentation.
        replicas: Model replicas under MirroredStrategy: GPUs where there are any, else logical CPU devices.
            None means every GPU, or one CPU.
        checkpoints: What training leaves on its way.
        early_stopping: When training ends before its last step.
    """

    steps: int = Field(500, gt=0)
    batch_size: int = Field(2, gt=0)
    patch: PatchShape = NetworkShape(16, 112, 112)
    losses: Losses = Field({"l2": 0.2, "null_space": 0.8})
    weigh_patches: bool = False
    relative: float = Field(0.0, ge=0, le=1)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(2e-3, gt=0)
    warmup_steps: int = Field(40, ge=0)
    weight_decay: float = Field(1e-4, ge=0)
    regularisation: float = Field(0.0, ge=0)
    clip_norm: float | None = Field(0.005, gt=0)
    average: float = Field(0.99, ge=0, lt=1)
    mixed_precision: Annotated[Literal["auto", "off", "bfloat16"], BeforeValidator(_off)] = "off"
    seed: int = Field(0, ge=0, lt=1 << 32)  # as NumPy takes it
    replicas: int | None = Field(None, gt=0)
    checkpoints: Checkpoints = Checkpoints()
    early_stopping: EarlyStopping | None = None

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.replicas and self.batch_size % self.replicas:
            raise ValueError(
                f"batch_size must divide by the replicas, received {self.batch_size} over {self.replicas}: "
                f"take a batch_size of {-(-self.batch_size // self.replicas) * self.replicas}"
            )
        return self


class Resources(Frozen):
    """Resources that the run asks of the cluster.

    Attributes:
        workers: Ray workers that restore shards.
        cpus_per_worker: CPU threads of each; TensorFlow's own pools are set to it.
        gpus_per_worker: GPUs of each.
        memory_budget_mib: What one worker may use for a shard, in MiB.
        retries: How often a shard is tried again after its worker died, fell silent or failed.
        patience_seconds: After so long without an answer a worker is replaced.
    """

    workers: int = Field(2, gt=0)
    cpus_per_worker: int = Field(1, gt=0)
    gpus_per_worker: int = Field(0, ge=0)
    memory_budget_mib: int = Field(2000, gt=0)
    retries: int = Field(2, ge=0)
    patience_seconds: float = Field(600.0, gt=0)


class Tracking(Frozen):
    """Address of the run.

    Attributes:
        experiment: Name of the MLflow experiment.
        registered_model: Name under which trained models are registered.
        record_paths: Whether file paths may go to MLflow; they may name a patient or a user.
    """

    experiment: str = Field("voxlift", min_length=1)
    registered_model: str = Field("restorer", pattern=r"^[A-Za-z0-9_. -]+$")
    record_paths: bool = False


class RunConfig(Frozen):
    """A whole run."""

    data: Data = Data()
    degradation: NamedDegradation
    augmentation: Augmentation = Augmentation()
    network: Network = Network()
    training: Training = Training()
    resources: Resources = Resources()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _patch_fits_network(self) -> Self:
        total = self.network.total_stride
        for axis, size, stride in zip(AXES, self.training.patch, total, strict=True):
            if size % stride:
                raise ValueError(
                    f"training.patch must be a multiple of the network's total stride {total}, "
                    f"received {size} along {axis}: take {-(-size // stride) * stride}"
                )
        return self
