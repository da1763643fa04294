"""Faster forms of convolutions, with the same weights and results: by stride phases, and with faster gradients.

The stride-phase form of a transposed convolution is the same sum as stride-1 convolutions, interleaved.
For stride `s` the output splits into phases: along one axis, `out[n*s + p] = sum over t of x[n'] * w[t]` for the taps
`t` with `n'*s + t - before = n*s + p`. Each phase is a convolution of the input with every s-th tap. Computed as one
convolution with a channel per phase, whose kernel holds the taps of all phases side by side and zeros where a phase has
none, followed by moving the phases from the channels into space. The phases are those of a block of `s` consecutive
outputs, which begins where its outputs read the fewest inputs: with kernel 4 and stride 2, a block that begins one
output before the volume reads two inputs and no zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops

Gradient = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]

DeviceKind = Literal["CPU", "GPU"]

MAX_FILTERS_ON_CPU = 1  # for which the phase form was faster: with eight and more it was not
# Channels that one instruction computes: fewer take as long. Free ones are filled with the taps along an axis without
# a stride, summed afterwards.
LANES = 16


@dataclass(frozen=True)
class PhaseBlock:
    """Interval that a block of consecutive outputs reads, along one axis.

    Args:
        start: The output at which the first block begins: 0, or negative where that reads fewer inputs.
        first: The first input that the block reads, relative to the block's number.
        taps: For each output of the block, the tap for each input that the block reads, None where there is none.
    """

    start: int
    first: int
    taps: tuple[tuple[int | None, ...], ...]

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros to put before and behind the input."""
        return -self.first, self.first + len(self.taps[0]) - 1 + (self.start < 0)


def phase_block(kernel_size: int, stride: int) -> PhaseBlock:
    """Find the block of outputs of a SAME transposed convolution that reads the fewest inputs, along one axis.

    >>> phase_block(4, 2).start, phase_block(4, 2).taps
    (-1, ((2, 0), (3, 1)))
    >>> phase_block(3, 2).start, phase_block(3, 2).taps
    (0, ((2, 0), (None, 1)))
    """
    return min((_block(kernel_size, stride, -shift) for shift in range(stride)), key=lambda block: len(block.taps[0]))


def _block(kernel_size: int, stride: int, start: int) -> PhaseBlock:
    # Output n*stride + start + p reads input n + m by the tap t = start + p + before - m*stride.
    shift = start + max(0, kernel_size - stride) // 2
    read = [
        m
        for m in range(-kernel_size, kernel_size + 1)
        if any(0 <= p + shift - m * stride < kernel_size for p in range(stride))
    ]
    taps = tuple(
        tuple(t if 0 <= (t := p + shift - m * stride) < kernel_size else None for m in range(read[0], read[-1] + 1))
        for p in range(stride)
    )
    return PhaseBlock(start, read[0], taps)


@keras.saving.register_keras_serializable(package="voxlift")
class PhasedConv3DTranspose(keras.layers.Conv3DTranspose):  # type: ignore[misc] # Keras has no types
    """A Conv3DTranspose, SAME and without output padding, computed by phases. Same arguments, same weights."""

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Upsample `(batch, depth, height, width, channels)` by the strides, to `filters` channels."""
        outputs = self.transposed(inputs, self.kernel)
        return self.activation(outputs + self.bias if self.use_bias else outputs)

    def transposed(self, inputs: keras.KerasTensor, kernel: keras.KerasTensor) -> keras.KerasTensor:
        """Compute the transposed convolution alone, without bias and activation."""
        blocks = [phase_block(size, stride) for size, stride in zip(self.kernel_size, self.strides, strict=True)]
        summed = self._summed_axis()
        kernel = ops.pad(kernel, [(0, 1)] * 3 + [(0, 0)] * 2)  # a slice of zeros for taps that do not exist
        for axis, (size, block) in enumerate(zip(self.kernel_size, blocks, strict=True)):
            places = np.array([[size if tap is None else tap for tap in taps] for taps in block.taps])
            if axis == summed:
                places = places.T
            kernel = ops.take(kernel, places.ravel(), axis=2 * axis)
            shape = ops.shape(kernel)
            kernel = ops.reshape(kernel, (*shape[: 2 * axis], *places.shape, *shape[2 * axis + 1 :]))
        # (phases, inputs) per axis, filters, channels -> inputs, channels, phases and filters
        kernel = ops.transpose(kernel, (1, 3, 5, 7, 0, 2, 4, 6))
        phases_shape = ops.shape(kernel)[4:]
        kernel = ops.reshape(kernel, (*ops.shape(kernel)[:4], -1))
        padded = ops.pad(inputs, [(0, 0), *(block.padding for block in blocks), (0, 0)])
        phases = ops.conv(padded, kernel, padding="valid")
        phases = ops.reshape(phases, (*ops.shape(phases)[:4], *phases_shape))
        if summed is not None:
            phases = _sum_shifted(phases, summed)
        return _interleave(phases, [block.start for block in blocks])

    def _summed_axis(self) -> int | None:
        """Return the axis whose taps are computed side by side: one without a stride, if channels are free."""
        for axis, (size, stride) in enumerate(zip(self.kernel_size, self.strides, strict=True)):
            if stride == 1 < size and self.filters * prod(self.strides) * size <= LANES:
                return axis
        return None


def _sum_shifted(phases: keras.KerasTensor, axis: int) -> keras.KerasTensor:
    """Add up the taps along an axis, which take the place of its phases, each shifted to its input."""
    taps = phases.shape[4 + axis]
    window = [slice(None)] * 8
    total = 0
    for tap in range(taps):
        window[1 + axis] = slice(tap, tap + 1 - taps or None)
        window[4 + axis] = slice(tap, tap + 1)
        total = total + phases[tuple(window)]
    return total


def _interleave(phases: keras.KerasTensor, starts: Sequence[int]) -> keras.KerasTensor:
    """Move phases, `(batch, depth, height, width, phases of each axis, filters)`, into space; outputs from 0 on."""
    batch, *sizes = ops.shape(phases)[:4]
    strides, filters = phases.shape[4:7], phases.shape[7]
    outputs = ops.reshape(
        ops.transpose(phases, (0, 1, 4, 2, 5, 3, 6, 7)),
        (batch, *(size * stride for size, stride in zip(sizes, strides, strict=True)), filters),
    )
    kept = (
        slice(-start, -(stride + start)) if start else slice(None)
        for start, stride in zip(starts, strides, strict=True)
    )
    return outputs[(slice(None), *kept)]


class ForwardConv3D(keras.layers.Conv3D):  # type: ignore[misc] # Keras has no types
    """A Conv3D, SAME, with odd kernels and without strides, whose gradient for its input is a convolution too.

    With the kernel flipped, it is the same sum as `Conv3DBackpropInputV2`, which takes 1.7x the time.
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


def with_phases(model: keras.Model, device: DeviceKind) -> keras.Model:
    """Return the network with transposed convolutions by phases where a device is faster so; weights are copied."""
    return with_layers(model, lambda layer: PhasedConv3DTranspose if faster_by_phases(layer, device) else type(layer))


def with_fast_gradients(model: keras.Model, device: DeviceKind) -> keras.Model:
    """Return the network with gradients by the operations that are faster on a device; weights are copied."""

    def kind(layer: keras.layers.Layer) -> type[keras.layers.Layer]:
        if faster_by_phases(layer, device):
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


def faster_by_phases(layer: keras.layers.Layer, device: DeviceKind) -> bool:
    """True if a layer is a transposed convolution that phases compute faster on a device.

    On CPUs that is so for one filter, as in the last stage of an upsampler. On GPUs it is so for every stage: with
    deterministic operations, cuDNN's backward-input convolution, which a Conv3DTranspose is, takes ten times as long,
    and a forward convolution does not (`benchmarks/results/gpu.md`).
    """
    return (
        type(layer) is keras.layers.Conv3DTranspose
        and (device == "GPU" or layer.filters <= MAX_FILTERS_ON_CPU)
        and (layer.padding, layer.output_padding, layer.data_format) == ("same", None, "channels_last")
        and set(layer.dilation_rate) == {1}
    )


def with_layers(
    model: keras.Model,
    kind: Callable[[keras.layers.Layer], type[keras.layers.Layer]],
    options: Callable[[keras.layers.Layer], dict[str, Any]] = lambda _: {},
) -> keras.Model:
    """Return the network with each layer recreated as the class that `kind` returns, weights copied.

    Args:
        model: The network.
        kind: The class of a layer's successor.
        options: Of the successor, in place of the layer's own.
    """
    changed = keras.models.clone_model(
        model,
        clone_function=lambda layer: kind(layer).from_config(layer.get_config() | options(layer)),
        recursive=True,
    )
    changed.set_weights(model.get_weights())
    return changed
