"""Transposed convolutions by phases: the same numbers, from the same weights, for any kernel and stride."""

import keras
import numpy as np
import pytest

from models.network.phases import PhasedConv3DTranspose, with_phases
from tests.networks import ROUTES, small_restorer

ARGUMENTS = [
    ((4, 4, 4), (2, 2, 2)),
    ((3, 4, 4), (1, 2, 2)),
    ((4, 8, 8), (2, 4, 4)),
    ((3, 3, 3), (2, 2, 2)),
    ((5, 2, 3), (2, 3, 4)),
    ((1, 6, 7), (1, 4, 3)),
]


@pytest.mark.parametrize(("kernel_size", "strides"), ARGUMENTS)
@pytest.mark.parametrize("filters", [1, 3])
def test_phases_are_the_transposed_convolution(kernel_size, strides, filters):
    arguments = {"strides": strides, "padding": "same", "activation": "silu", "bias_initializer": "random_normal"}
    plain = keras.layers.Conv3DTranspose(filters, kernel_size, **arguments)
    phased = PhasedConv3DTranspose(filters, kernel_size, **arguments)
    tensor = np.random.default_rng(1).normal(size=(2, 4, 5, 3, 2)).astype(np.float32)
    expected = plain(tensor).numpy()
    phased.build(tensor.shape)
    phased.set_weights(plain.get_weights())
    np.testing.assert_allclose(phased(tensor).numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("route", ROUTES)
def test_a_network_by_phases_keeps_its_weights_and_its_output(route):
    model = small_restorer(route, filters=1)
    phased = with_phases(model)
    replaced = [layer for layer in phased.layers if isinstance(layer, PhasedConv3DTranspose)]
    assert len(replaced) == len(ROUTES[route])
    volume = np.random.default_rng(2).random((1, 16, 32, 48, 1), np.float32)
    np.testing.assert_allclose(phased(volume).numpy(), model(volume).numpy(), atol=1e-5)


def test_wide_stages_stay_as_they_are():
    phased = with_phases(small_restorer(filters=4))
    assert not any(isinstance(layer, PhasedConv3DTranspose) for layer in phased.layers)
