"""Weights of a transposed convolution between the layouts of Caffe and PyTorch and of TensorFlow.

Caffe and PyTorch store (in, out, depth, height, width), TensorFlow (depth, height, width, out, in). No tap is flipped:
in all of them tap `t` of input voxel `n` lands on output voxel `n * stride + t * dilation - before`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt


def from_channels_first(weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Lay Caffe or PyTorch weights out for TensorFlow.

    Args:
        weights: (in, out, depth, height, width).

    Returns:
        The same numbers as (depth, height, width, out, in), contiguous.

    >>> from_channels_first(np.zeros((64, 32, 3, 4, 5))).shape
    (3, 4, 5, 32, 64)
    """
    return np.ascontiguousarray(np.transpose(weights, (2, 3, 4, 1, 0)))


def to_channels_first(weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Lay TensorFlow weights out for Caffe or PyTorch, the inverse of `from_channels_first`."""
    return np.ascontiguousarray(np.transpose(weights, (4, 3, 0, 1, 2)))
