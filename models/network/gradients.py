"""A network as it trains on CPUs: the same weights and results, with gradients by faster equivalent operations."""

from collections.abc import Callable

import keras
import tensorflow as tf

from models.network.phases import PhasedConv3DTranspose, faster_by_phases, with_layers

Gradient = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class ForwardConv3D(keras.layers.Conv3D):  # type: ignore[misc] # Keras has no types
    """A Conv3D, SAME, with odd kernels and without strides, whose gradient for its input is a convolution too.

    With the kernel flipped, it is the same sum as `Conv3DBackpropInputV2`, which takes 1.7 times as long.
    """

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolve `(batch, depth, height, width, channels)`, without bias and activation."""
        return _convolved(inputs, tf.convert_to_tensor(kernel))


@tf.custom_gradient  # type: ignore[untyped-decorator] # TensorFlow has no types
def _convolved(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
    ones = [1] * 5

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        flipped = tf.transpose(tf.reverse(kernel, [0, 1, 2]), (0, 1, 2, 4, 3))
        return tf.nn.conv3d(upstream, flipped, ones, "SAME"), tf.raw_ops.Conv3DBackpropFilterV2(
            input=inputs, filter_sizes=tf.shape(kernel), out_backprop=upstream, strides=ones, padding="SAME"
        )

    return tf.nn.conv3d(inputs, kernel, ones, "SAME"), gradient


class PhasedForwardConv3DTranspose(PhasedConv3DTranspose):
    """A Conv3DTranspose by phases in the forward pass only: in the backward pass they take longer."""

    def transposed(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Compute the transposed convolution alone, without bias and activation."""
        by_phases, strides = super().transposed, (1, *self.strides, 1)

        @tf.custom_gradient  # type: ignore[untyped-decorator] # TensorFlow has no types
        def transposed(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
            def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                return tf.nn.conv3d(upstream, kernel, strides, "SAME"), tf.raw_ops.Conv3DBackpropFilterV2(
                    input=upstream, filter_sizes=tf.shape(kernel), out_backprop=inputs, strides=strides, padding="SAME"
                )

            return by_phases(inputs, kernel), gradient

        return transposed(inputs, tf.convert_to_tensor(kernel))


def with_fast_gradients(model: keras.Model) -> keras.Model:
    """Return the network with gradients by faster operations where there are any; weights are copied."""

    def kind(layer: keras.layers.Layer) -> type[keras.layers.Layer]:
        if faster_by_phases(layer):
            return PhasedForwardConv3DTranspose
        if (
            type(layer) is keras.layers.Conv3D
            and (layer.padding, layer.data_format, layer.groups) == ("same", "channels_last", 1)
            and set(layer.strides) == set(layer.dilation_rate) == {1}
            and all(size % 2 for size in layer.kernel_size)
        ):
            return ForwardConv3D
        return type(layer)

    return with_layers(model, kind)
