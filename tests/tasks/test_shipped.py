"""The weights that ship: by digest, and by the numbers that they restore."""

import numpy as np
import pytest

from configs.axes import NetworkShape
from configs.degradation import named_degradation
from tasks.artifacts.saved_models import load_model
from tasks.artifacts.shipped import shipped_network
from tasks.imaging.degrade import degrade
from tasks.sharding.restore import coarse_volume
from tasks.volume.intensity import CLIP, Intensity

SHAPE = NetworkShape(32, 48, 48)
STORED = [-0.0321, 0.0557, 0.4360, 0.6845, 0.7516, 0.7838, 0.8275, 0.7214]  # across the shell


@pytest.fixture(scope="module")
def restored(tmp_path_factory):
    """A ball with a bright shell, degraded as MR scanners do, and restored."""
    path = tmp_path_factory.mktemp("model") / "shipped.keras"
    path.write_bytes(shipped_network().content)
    places = np.indices(SHAPE) - np.reshape([15.5, 23.5, 23.5], (3, 1, 1, 1))
    radius = np.sqrt((places**2).sum(axis=0))
    fine = (0.6 * (radius < 14) + 0.3 * ((radius > 9) & (radius < 11))).astype(np.float32)
    recipe = named_degradation("kspace2x")
    volume = coarse_volume(degrade(fine, recipe), SHAPE, Intensity(0, 1), recipe)
    given = volume.input_window(((0, 32), (0, 48), (0, 48)))
    seen = np.clip(given, 0, np.float32(CLIP))
    return fine, given, load_model(path)(seen[None, ..., None], training=False).numpy()[0, ..., 0] + given - seen


def test_the_shipped_weights_restore_a_known_volume_to_stored_numbers(restored):
    _, _, found = restored
    np.testing.assert_allclose(found[16, 24, 8:16], STORED, atol=1e-4)


def test_the_shipped_weights_come_nearer_to_the_truth(restored):
    fine, given, found = restored
    assert np.mean((found - fine) ** 2) < 0.8 * np.mean((given - fine) ** 2)


def test_the_shipped_weights_say_what_they_are_for():
    card = shipped_network().card
    assert card is not None
    assert (card.input, card.degradation.name) == ("consistent", "kspace2x")
    assert card.warnings((2, 2, 2), (1, 1, 1)) == []
    assert len(card.warnings((4, 1, 1), (1, 1, 1))) == 3
