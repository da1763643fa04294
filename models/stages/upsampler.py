"""The upsampler: a chain of stages as a Keras model, on any latent, and its twin on `tf.nn.conv3d_transpose`.

The layer makes its weights and derives its output shape; the operation receives both. They compute the same numbers,
in the shapes that `models.stages.report` predicts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from configs.axes import TensorShape
from models.stages.report import describe
from models.stages.stage import Axis, Stage


def build_upsampler(
    latent_shape: tuple[int | None, int | None, int | None, int],
    stages: Sequence[Stage],
    activation: str | None = "relu",
) -> keras.Model:
    """Build the upsampler.

    Args:
        latent_shape: (depth, height, width, channels); an axis that is None takes any size.
        stages: From the latent to the output, at least one.
        activation: Keras' name of what follows every stage but the last, which is linear.

    Returns:
        A model from `(batch, *latent_shape)` to the shape that the last stage makes.
    """
    latent = keras.Input(latent_shape, name="latent")
    tensor = latent
    for number, stage in enumerate(stages, start=1):
        tensor = keras.layers.Conv3DTranspose(
            stage.filters,
            stage.kernel_size,
            strides=stage.strides,
            dilation_rate=stage.dilation_rate,
            padding=stage.padding,
            output_padding=stage.output_padding,
            activation=activation if number < len(stages) else None,
            name=f"stage_{number}",
        )(tensor)
    return keras.Model(latent, tensor, name="upsampler")


def build_twin(upsampler: keras.Model) -> keras.Model:
    """Build the same chain on `tf.nn.conv3d_transpose`.

    Args:
        upsampler: From `build_upsampler`.

    Returns:
        A model of the same input and output whose weights are those of the upsampler: training one trains both.
    """
    latent = keras.Input(upsampler.input_shape[1:], name="latent")
    tensor = latent
    for layer in upsampler.layers:
        if isinstance(layer, keras.layers.Conv3DTranspose):
            tensor = ConvTransposeOperation(layer, name=f"{layer.name}_operation")(tensor)
    return keras.Model(latent, tensor, name="upsampler_twin")


@keras.saving.register_keras_serializable("voxlift")
class ConvTransposeOperation(keras.layers.Layer):  # type: ignore[misc]  # Keras carries no types
    """`tf.nn.conv3d_transpose` with explicit weights, bias and `output_shape`, those of a layer.

    Args:
        source: The layer whose kernel `(depth, height, width, out, in)`, bias and activation are used.

    Input shape: `(batch, depth, height, width, channels)`.

    Output shape: That of the layer.
    """

    def __init__(self, source: keras.layers.Conv3DTranspose, **kwargs: Any) -> None:  # noqa: ANN401 - Keras' own
        super().__init__(**kwargs)
        self.source = source

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the layer's weights, if it has none yet."""
        if not self.source.built:
            self.source.build(input_shape)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Run the operation, then add the bias and activate."""
        source, shape = self.source, tf.shape(inputs)
        padding = source.output_padding or (None, None, None)
        axes = map(Axis, source.kernel_size, source.strides, source.dilation_rate, [source.padding] * 3, padding)
        sizes = [axis.output_size(shape[i]) for i, axis in enumerate(axes, start=1)]
        output = tf.nn.conv3d_transpose(
            inputs,
            source.kernel,
            [shape[0], *sizes, source.filters],
            source.strides,
            padding=source.padding.upper(),
            dilations=source.dilation_rate,
        )
        return source.activation(tf.nn.bias_add(output, source.bias))

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Return the shape that the layer makes."""
        return tuple(self.source.compute_output_shape(input_shape))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of `from_config`."""
        return {**super().get_config(), "source": keras.saving.serialize_keras_object(self.source)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the operation again, with a layer of its own."""
        return cls(keras.saving.deserialize_keras_object(config.pop("source")), **config)


@dataclass(frozen=True)
class ImplementationComparison:
    """Comparison of layer and operation.

    Args:
        shapes: Whether every stage of both made the predicted shape.
        max_abs_difference: Between their outputs, over all stages.
    """

    shapes: bool
    max_abs_difference: float


def compare_implementations(latent_shape: TensorShape, stages: Sequence[Stage]) -> ImplementationComparison:
    """Run stages on a random latent with random weights and biases, each stage as layer and as operation.

    Args:
        latent_shape: (batch, depth, height, width, channels).
        stages: From the latent to the output.
    """
    predicted = [stage.output_shape for stage in describe(latent_shape, stages).stages]
    upsampler = build_upsampler(latent_shape[1:], stages)
    random = np.random.default_rng(0)
    upsampler.set_weights([random.normal(size=weights.shape, scale=0.1) for weights in upsampler.get_weights()])
    latent = random.normal(size=latent_shape).astype(np.float32)
    by_layer, by_operation = (_stage_outputs(model, latent) for model in (upsampler, build_twin(upsampler)))
    pairs = zip(by_layer, by_operation, strict=True)
    return ImplementationComparison(
        shapes=all([output.shape for output in outputs] == predicted for outputs in (by_layer, by_operation)),
        max_abs_difference=max(float(np.abs(layer - operation).max()) for layer, operation in pairs),
    )


def _stage_outputs(model: keras.Model, latent: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    tensor, outputs = latent, []
    for stage in model.layers[1:]:
        tensor = stage(tensor)
        outputs.append(np.asarray(tensor))
    return outputs
