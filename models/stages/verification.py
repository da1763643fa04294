"""Stages built and run, as layer and as operation: what `models.stages.report` says, held against TensorFlow."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt

from configs.axes import TensorShape
from models.stages.report import describe
from models.stages.stage import Stage
from models.stages.upsampler import build_twin, build_upsampler


@dataclass(frozen=True)
class Verification:
    """Comparison of layer and operation.

    Args:
        shapes: Whether every stage of both made the shape that was predicted.
        max_abs_difference: Between their outputs, over all stages.
    """

    shapes: bool
    max_abs_difference: float


def verify(latent_shape: TensorShape, stages: Sequence[Stage]) -> Verification:
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
    by_layer, by_operation = (_outputs(model, latent) for model in (upsampler, build_twin(upsampler)))
    pairs = zip(by_layer, by_operation, strict=True)
    return Verification(
        shapes=all([output.shape for output in outputs] == predicted for outputs in (by_layer, by_operation)),
        max_abs_difference=max(float(np.abs(layer - operation).max()) for layer, operation in pairs),
    )


def _outputs(model: keras.Model, latent: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """Output of every stage."""
    tensor, outputs = latent, []
    for stage in model.layers[1:]:
        tensor = stage(tensor)
        outputs.append(np.asarray(tensor))
    return outputs
