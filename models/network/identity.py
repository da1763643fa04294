"""A network that returns its input exactly, by the operations that restorers consist of."""

from itertools import product

import keras
import numpy as np

STRIDE = 2


def build_identity() -> keras.Model:
    """Build a network that folds space into channels by a strided convolution and back by a transposed one.

    Every weight is 0 or 1, so each voxel is one product, and any difference comes from the operations.

    Returns:
        A model from `(batch, depth, height, width, 1)` to the same, sizes in multiples of 2. It has a receptive field,
        so shards of it have a halo.
    """
    phases = list(product(range(STRIDE), repeat=3))
    inputs = keras.Input((None, None, None, 1), name="resampled")
    options = {"strides": STRIDE, "padding": "same", "use_bias": False}
    folding = keras.layers.Conv3D(len(phases), 3, **options)
    depth_to_space = keras.layers.Conv3DTranspose(1, 4, **options)
    model = keras.Model(inputs, depth_to_space(folding(inputs)), name="identity")

    taps = np.zeros((3, 3, 3, 1, len(phases)), np.float32)
    inverse = np.zeros((4, 4, 4, 1, len(phases)), np.float32)
    for channel, (i, j, k) in enumerate(phases):
        # SAME: the strided convolution reads on from its voxel, the transposed one begins one voxel before.
        taps[i, j, k, 0, channel] = 1
        inverse[i + 1, j + 1, k + 1, 0, channel] = 1
    folding.set_weights([taps])
    depth_to_space.set_weights([inverse])
    return model
