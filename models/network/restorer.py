"""The restorer: an encoder down to the latent and the multi-stage upsampler back up, added to the input."""

from collections.abc import Sequence

import keras

from configs.axes import AXES
from configs.errors import ShapeError
from models.stages.stage import Stage


def build_restorer(
    stages: Sequence[Stage],
    *,
    latent_filters: int = 64,
    convolutions: Sequence[int] | int = 1,
    skip: str = "concatenate",
    activation: str = "leaky_relu",
) -> keras.Model:
    """Build the network that restores what resampling could not.

    The encoder mirrors the upsampler: for each stage, a strided convolution starts at the shape in which the stage
    ends. The last stage starts from zero weights, so an untrained restorer returns its input.

    Args:
        stages: The upsampler's stages from the latent to one channel; padding "same", kernels no smaller than strides.
        latent_filters: Channels of the latent.
        convolutions: Convolutions of 3x3x3 that follow each change of shape, on both ways: one number, or one for each
            level from the latent to the one below the target grid.
        skip: "concatenate" or "add": how a stage joins the encoder's tensor of the same shape.
        activation: Name of a Keras activation.

    Returns:
        A model from `(batch, depth, height, width, 1)`, float32, the volume resampled onto the target grid and
        normalised, to the same shape. Depth, height and width are free, in multiples of the product of the strides.

    Raises:
        ShapeError: The stages do not lead back to the input's grid and channel.
    """
    _require_way_back(stages)
    counts = [convolutions] * len(stages) if isinstance(convolutions, int) else convolutions
    filters = [latent_filters, *(stage.filters for stage in stages[:-1])]
    options = {"padding": "same", "activation": activation}

    def convolve(tensor: keras.KerasTensor, level: int, name: str) -> keras.KerasTensor:
        for number in range(counts[level]):
            tensor = keras.layers.Conv3D(filters[level], 3, name=f"{name}_conv_{number}", **options)(tensor)
        return tensor

    tensor = inputs = keras.Input((None, None, None, 1), name="resampled")
    encoded: dict[int, keras.KerasTensor] = {}
    for level, stage in reversed(list(enumerate(stages))):
        name = f"encode_{level}"
        tensor = keras.layers.Conv3D(filters[level], stage.kernel_size, stage.strides, name=name, **options)(tensor)
        encoded[level] = tensor = convolve(tensor, level, name)

    join = keras.layers.Concatenate if skip == "concatenate" else keras.layers.Add
    for level, stage in enumerate(stages[:-1]):
        upsample = keras.layers.Conv3DTranspose(
            stage.filters, stage.kernel_size, stage.strides, name=f"stage_{level}", **options
        )
        tensor = join(name=f"join_{level}")([upsample(tensor), encoded[level + 1]])
        tensor = convolve(tensor, level + 1, f"decode_{level}")
    last = keras.layers.Conv3DTranspose(
        1,
        stages[-1].kernel_size,
        stages[-1].strides,
        padding="same",
        kernel_initializer="zeros",
        dtype="float32",
        name=f"stage_{len(stages) - 1}",
    )
    restored = keras.layers.Add(name="restored", dtype="float32")([inputs, last(tensor)])
    return keras.Model(inputs, restored, name="restorer")


def _require_way_back(stages: Sequence[Stage]) -> None:
    if not stages or stages[-1].filters != 1:
        raise ShapeError("Cannot build the restorer: the last stage must have 1 filter, the channel of a volume.")
    for number, stage in enumerate(stages, start=1):
        if stage.padding != "same" or stage.output_padding is not None:
            raise ShapeError(
                f"Cannot build the restorer: stage {number} must have padding same and no output padding, so that it "
                f"ends in the encoder's shape, received {stage.padding} and {stage.output_padding}."
            )
        for axis, kernel, stride in zip(AXES, stage.kernel_size, stage.strides, strict=True):
            if kernel < stride:
                raise ShapeError(
                    f"Cannot build the restorer: stage {number} has kernel {kernel} below stride {stride} along "
                    f"{axis}, which leaves holes.",
                    f"Use kernel {2 * stride}.",
                )
