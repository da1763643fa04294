"""Gradients by faster sums: the same numbers as TensorFlow's own, for every layer that is exchanged."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.network.phases import ForwardConv3D, PhasedForwardConv3DTranspose, with_fast_gradients
from tests.networks import ROUTES, small_restorer

LAYERS = [
    keras.layers.Conv3D(3, (3, 5, 1), padding="same", activation="silu"),
    keras.layers.Conv3DTranspose(1, (4, 4, 4), (2, 2, 2), padding="same"),
    keras.layers.Conv3DTranspose(1, (3, 4, 4), (1, 2, 2), padding="same"),
    keras.layers.Conv3DTranspose(1, (5, 3, 2), (2, 3, 1), padding="same"),
]


def gradients(model, inputs, upstream):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = model(inputs, training=True)
        loss = tf.reduce_sum(upstream * outputs)
    return [outputs, *tape.gradient(loss, [inputs, *model.trainable_variables])]


def require_same_gradients(model, shape, device="CPU"):
    random = np.random.default_rng(0)
    fast = with_fast_gradients(model, device)
    inputs = tf.constant(random.normal(size=shape), tf.float32)
    upstream = tf.constant(random.random(size=model(inputs).shape), tf.float32)  # of one sign: sums do not cancel
    for one, other in zip(gradients(fast, inputs, upstream), gradients(model, inputs, upstream), strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one / scale, other / scale, atol=1e-5)
    return {type(layer) for layer in fast.layers}


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: f"{type(layer).__name__} {layer.kernel_size}")
def test_an_exchanged_layer_has_the_same_gradients(layer):
    inputs = keras.Input((None, None, None, 2))
    model = keras.Model(inputs, layer(inputs))
    model.set_weights([np.random.default_rng(1).normal(size=w.shape) for w in model.get_weights()])
    kinds = require_same_gradients(model, (2, 4, 5, 6, 2))
    assert kinds & {ForwardConv3D, PhasedForwardConv3DTranspose}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("device", "filters"), [("CPU", 1), ("GPU", 3)])
def test_a_restorer_has_the_same_gradients(route, device, filters):
    kinds = require_same_gradients(small_restorer(route, filters, convolutions=1), (2, 16, 32, 32, 1), device)
    assert keras.layers.Conv3DTranspose not in kinds
    assert {ForwardConv3D, PhasedForwardConv3DTranspose} <= kinds


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.Conv3D(3, 4, padding="same"),
        keras.layers.Conv3D(3, 3, 2, padding="same"),
        keras.layers.Conv3D(3, 3, padding="valid"),
        keras.layers.Conv3DTranspose(3, 4, 2, padding="same"),
    ],
)
def test_other_layers_stay_as_they_are(layer):
    inputs = keras.Input((8, 8, 8, 2))
    fast = with_fast_gradients(keras.Model(inputs, layer(inputs)), "CPU")
    assert type(fast.layers[1]) is type(layer)
