"""Transposed convolutions by phases: the same numbers, from the same weights, for any kernel and stride."""

import keras
import numpy as np
import pytest

from models.network.phases import PhasedConv3DTranspose, with_phases
from tasks.sharding import compiled
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
@pytest.mark.parametrize(("device", "filters"), [("CPU", 1), ("GPU", 4)])
def test_a_network_by_phases_keeps_its_weights_and_its_output(route, device, filters):
    model = small_restorer(route, filters=filters)
    phased = with_phases(model, device)
    replaced = [layer for layer in phased.layers if isinstance(layer, PhasedConv3DTranspose)]
    assert len(replaced) == len(ROUTES[route])
    volume = np.random.default_rng(2).random((1, 16, 32, 48, 1), np.float32)
    expected = model(volume).numpy()
    np.testing.assert_allclose(phased(volume).numpy(), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_wide_stages_stay_as_they_are_on_cpus():
    phased = with_phases(small_restorer(filters=4), "CPU")
    assert not any(isinstance(layer, PhasedConv3DTranspose) for layer in phased.layers)


def test_the_device_of_the_process_chooses(monkeypatch, tmp_path):
    path = tmp_path / "model.keras"
    small_restorer(filters=4).save(path)
    volume, restored, calls = np.random.default_rng(3).random((16, 32, 48), np.float32), [], []
    transposed = PhasedConv3DTranspose.transposed

    def counted(layer, *tensors):
        calls.append(layer.name)
        return transposed(layer, *tensors)

    monkeypatch.setattr(PhasedConv3DTranspose, "transposed", counted)
    for device, expected in (("CPU", 0), ("GPU", len(ROUTES["four stages"]))):
        monkeypatch.setattr(compiled, "device_kind", lambda device=device: device)
        network = compiled.CompiledNetwork(path.name, path.read_bytes(), None)
        restored.append(network.restored(volume, 0.0, 1.0))
        assert len(calls) == expected
    np.testing.assert_allclose(restored[0], restored[1], rtol=0, atol=1e-6 * np.abs(restored[0]).max())
