"""Transposed convolution by its definition, in plain NumPy: the reference that shares nothing with the product."""

import itertools

import numpy as np


def scatter(x, weights, strides, dilation_rate=(1, 1, 1)):
    """Every input voxel adds its weighted taps: nothing cut, nothing added.

    Args:
        x: (batch, depth, height, width, in).
        weights: (depth, height, width, out, in).
    """
    kernel = weights.shape[:3]
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation_rate, strict=True)]
    sizes = [(n - 1) * s + span for n, s, span in zip(x.shape[1:4], strides, spans, strict=True)]
    full = np.zeros((x.shape[0], *sizes, weights.shape[3]))
    for tap in itertools.product(*map(range, kernel)):
        start = [t * d for t, d in zip(tap, dilation_rate, strict=True)]
        place = tuple(slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(start, x.shape[1:4], strides, strict=True))
        full[(slice(None), *place)] += x @ weights[tap].T
    return full


def windowed(full, before, sizes):
    """Cut `before` voxels off the start of each axis and take so many; beyond the end there is nothing."""
    padded = np.pad(full, [(0, 0), *((0, max(0, size)) for size in sizes), (0, 0)])
    window = tuple(slice(start, start + size) for start, size in zip(before, sizes, strict=True))
    return padded[(slice(None), *window)]


def as_tensorflow(x, weights, strides, sizes, padding, dilation_rate=(1, 1, 1)):
    """Output of wanted sizes, aligned as the forward convolution's documented padding says."""
    full = scatter(x, weights, strides, dilation_rate)
    before = [0, 0, 0]
    if padding == "same":
        before = [max(0, whole - size) // 2 for whole, size in zip(full.shape[1:4], sizes, strict=True)]
    return windowed(full, before, sizes)


def as_torch(x, weights, strides, pad, output_padding, dilation_rate=(1, 1, 1)):
    """PyTorch's ConvTranspose3d by its definition, and Caffe's Deconvolution where output_padding is 0."""
    full = scatter(x, weights, strides, dilation_rate)
    sizes = [whole - 2 * cut + added for whole, cut, added in zip(full.shape[1:4], pad, output_padding, strict=True)]
    return windowed(full, pad, sizes)
