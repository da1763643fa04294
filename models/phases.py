"""The stride-phase form of a transposed convolution: the same sum as stride-1 convolutions, interleaved.

For stride `s` the output splits into phases: along one axis, `out[n*s + p] = sum over t of x[n'] * w[t]` for the taps
`t` with `n'*s + t - before = n*s + p`. Each phase is a convolution of the input with every s-th tap. Computed as one
convolution with a channel per phase, whose kernel holds the taps of all phases side by side and zeros where a phase has
none, followed by moving the phases from the channels into space.
"""

from collections.abc import Sequence
from math import prod

import keras
import numpy as np
from keras import ops

# Filters up to which the phase form was faster: with one it was, with eight and more it was not.
FASTER_UP_TO_FILTERS = 1


def phase_taps(kernel_size: int, stride: int) -> tuple[int, list[list[int | None]]]:
    """Which tap of a SAME transposed convolution meets which neighbour of an input voxel, along one axis.

    Returns:
        The offset of the first neighbour, and for each phase the tap for each neighbour, None where there is none.

    >>> phase_taps(4, 2)
    (-1, [[3, 1, None], [None, 2, 0]])
    """
    before = max(0, kernel_size - stride) // 2
    # Output n*stride + p reads input n + m by the tap t = p + before - m*stride.
    offsets = [
        m
        for m in range(-kernel_size, kernel_size + 1)
        if any(0 <= p + before - m * stride < kernel_size for p in range(stride))
    ]
    taps = [
        [t if 0 <= (t := p + before - m * stride) < kernel_size else None for m in range(offsets[0], offsets[-1] + 1)]
        for p in range(stride)
    ]
    return offsets[0], taps


@keras.saving.register_keras_serializable(package="voxlift")
class PhasedConv3DTranspose(keras.layers.Conv3DTranspose):  # type: ignore[misc] # Keras has no types
    """A Conv3DTranspose, SAME and without output padding, computed by phases. Same arguments, same weights."""

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Upsample `(batch, depth, height, width, channels)` by the strides, to `filters` channels."""
        kernel = ops.pad(self.kernel, [(0, 1)] * 3 + [(0, 0)] * 2)  # a slice of zeros for the taps that are none
        padding = [(0, 0)]
        for axis, (size, stride) in enumerate(zip(self.kernel_size, self.strides, strict=True)):
            first, taps = phase_taps(size, stride)
            places = [size if tap is None else tap for phase in taps for tap in phase]
            kernel = ops.take(kernel, np.array(places), axis=2 * axis)
            shape = ops.shape(kernel)
            kernel = ops.reshape(kernel, (*shape[: 2 * axis], stride, len(taps[0]), *shape[2 * axis + 1 :]))
            padding.append((-first, first + len(taps[0]) - 1))
        # (phases, neighbours) per axis, filters, channels -> neighbours, channels, phases and filters
        kernel = ops.transpose(kernel, (1, 3, 5, 7, 0, 2, 4, 6))
        kernel = ops.reshape(kernel, (*ops.shape(kernel)[:4], -1))
        if all(before == after for before, after in padding):
            phases = ops.conv(inputs, kernel, padding="same")
        else:
            phases = ops.conv(ops.pad(inputs, [*padding, (0, 0)]), kernel, padding="valid")
        if self.use_bias:
            phases = phases + ops.tile(self.bias, (prod(self.strides),))
        return self.activation(_interleave(phases, self.strides, self.filters))


def _interleave(phases: keras.KerasTensor, strides: Sequence[int], filters: int) -> keras.KerasTensor:
    """Move phases from the channels into space."""
    shape = ops.shape(phases)
    split = ops.reshape(phases, (*shape[:4], *strides, filters))
    moved = ops.transpose(split, (0, 1, 4, 2, 5, 3, 6, 7))
    sizes = [shape[axis + 1] * stride for axis, stride in enumerate(strides)]
    return ops.reshape(moved, (shape[0], *sizes, filters))


def with_phases(model: keras.Model) -> keras.Model:
    """Return the network with its transposed convolutions computed by phases where that is faster; weights are copied.

    It is faster for one filter, as in the last stage of an upsampler, and slower for eight and more.
    """

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if (
            type(layer) is keras.layers.Conv3DTranspose
            and layer.filters <= FASTER_UP_TO_FILTERS
            and (layer.padding, layer.output_padding, layer.data_format) == ("same", None, "channels_last")
            and set(layer.dilation_rate) == {1}
        ):
            return PhasedConv3DTranspose.from_config(config)
        return type(layer).from_config(config)

    phased = keras.models.clone_model(model, clone_function=clone, recursive=True)
    phased.set_weights(model.get_weights())
    return phased
