"""Search for disagreements between the rules of `models.stages.stage` and real `tf.nn` operations."""

from itertools import product

import tensorflow as tf

from models.stages.stage import Axis
from tests.models.sweep import PADDINGS, SIZES, geometries

REFUSED = (tf.errors.OpError, ValueError)


def forward_disagreements(axes, *, below_kernel):
    """(axis, size) whose forward convolution has another size than predicted."""
    return [
        (axis, size)
        for axis, size in product(axes, range(1, 55))
        if (below_kernel or axis.padding == "same" or size >= axis.span)
        and forward_size(axis, size) != axis.forward_size(size)
    ]


def transposed_disagreements(axes, *, below_kernel):
    """(axis, size, output size) that the transposed operation refuses against the prediction, or makes against it."""
    return [
        (axis, size, wanted)
        for axis, size in product(axes, SIZES)
        for wanted in around(axis.accepted_sizes(size), 1 if below_kernel or axis.padding == "same" else axis.span)
        if transposed(axis, size, wanted) != (wanted in axis.accepted_sizes(size))
    ]


def around(accepted, smallest):
    return range(max(smallest, accepted.start - 3), accepted.stop + 3)


def operation_axes():
    return [Axis(k, s, d, padding) for (k, s, d), padding in product(geometries(), PADDINGS)]


def forward_size(axis, size):
    weights = tf.ones((1, 1, axis.kernel_size, 1, 1))
    strides, dilations = (1, 1, 1, axis.stride, 1), (1, 1, 1, axis.dilation_rate, 1)
    try:
        made = tf.nn.conv3d(tf.ones((1, 1, 1, size, 1)), weights, strides, axis.padding.upper(), dilations=dilations)
    except REFUSED:
        return 0
    return made.shape[3]


def transposed(axis, size, wanted):
    weights, shape = tf.ones((1, 1, axis.kernel_size, 1, 1)), (1, 1, 1, wanted, 1)
    strides, dilations = (1, 1, axis.stride), (1, 1, axis.dilation_rate)
    x = tf.ones((1, 1, 1, size, 1))
    try:
        made = tf.nn.conv3d_transpose(x, weights, shape, strides, axis.padding.upper(), dilations=dilations)
    except REFUSED:
        return False
    return tuple(made.shape) == shape


def disagreements_of_plain_kernels():
    """Run where TF_ENABLE_ONEDNN_OPTS is 0; the kernels that TensorFlow then takes on a CPU know no dilation."""
    axes = [axis for axis in operation_axes() if axis.dilation_rate == 1]
    return forward_disagreements(axes, below_kernel=True) + transposed_disagreements(axes, below_kernel=True)
