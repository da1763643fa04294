"""The weights that ship: by digest, and by the numbers that they restore."""

import numpy as np
import pytest

from configs.axes import NetworkShape
from configs.degradation import named_degradation
from tasks.artifacts.network_file import parse_network
from tasks.artifacts.saved_models import load_model
from tasks.artifacts.shipped import DIGESTS, half_precision, ship, shipped_network
from tasks.imaging.degrade import degrade
from tasks.sharding.restore import coarse_volume
from tasks.volume.intensity import CLIP, Intensity
from tests.networks import small_restorer

SHAPE = NetworkShape(32, 48, 48)
RECIPES = {
    False: named_degradation("kspace2x"),
    True: named_degradation("thick4x"),
}
STORED = {  # across the shell
    False: [-0.0272, 0.0759, 0.4483, 0.6818, 0.7417, 0.7783, 0.8103, 0.7405],
    True: [-0.0033, 0.0509, 0.6906, 0.6531, 0.5941, 0.847, 0.8875, 0.6313],
}
REMAINING_ERROR = {False: 0.85, True: 0.98}  # squared error over that of the input, at most


@pytest.fixture(scope="module", params=[False, True], ids=["2x", "thick"])
def restored(request, tmp_path_factory):
    """A ball with a bright shell, degraded and restored."""
    thick = request.param
    path = tmp_path_factory.mktemp("model") / "shipped.keras"
    path.write_bytes(shipped_network(thick=thick).content)
    places = np.indices(SHAPE) - np.reshape([15.5, 23.5, 23.5], (3, 1, 1, 1))
    radius = np.sqrt((places**2).sum(axis=0))
    fine = (0.6 * (radius < 14) + 0.3 * ((radius > 9) & (radius < 11))).astype(np.float32)
    recipe = RECIPES[thick]
    volume = coarse_volume(degrade(fine, recipe), SHAPE, Intensity(0, 1), recipe)
    given = volume.input_window(((0, 32), (0, 48), (0, 48)))
    seen = np.clip(given, 0, np.float32(CLIP))
    found = load_model(path)(seen[None, ..., None], training=False).numpy()[0, ..., 0] + given - seen
    return thick, fine, given, found


def test_the_shipped_weights_restore_a_known_volume_to_stored_numbers(restored):
    thick, _, _, found = restored
    np.testing.assert_allclose(found[16, 24, 8:16], STORED[thick], atol=1e-4)


def test_the_shipped_weights_come_nearer_to_the_truth(restored):
    thick, fine, given, found = restored
    assert np.mean((found - fine) ** 2) < REMAINING_ERROR[thick] * np.mean((given - fine) ** 2)


def test_weights_are_shipped_in_half_the_space(tmp_path):
    """Keras loads the nearest numbers of half precision; the digest is that of the file."""
    model, folder = small_restorer(), tmp_path / "weights"
    folder.mkdir()
    model.save(tmp_path / "small.keras")
    ship([tmp_path / "small.keras"], folder)
    content = (folder / "small.keras").read_bytes()
    assert half_precision(content) == content
    assert len(content) < (tmp_path / "small.keras").stat().st_size
    for found, given in zip(load_model(folder / "small.keras").get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, given.astype(np.float16).astype(np.float32))
    assert (folder / DIGESTS).read_text() == f"{parse_network('small.keras', content).digest}  small.keras\n"


def test_the_shipped_weights_say_what_they_are_for():
    card = shipped_network().card
    assert card is not None
    assert (card.input, card.degradation.name) == ("consistent", "kspace2x")
    assert card.warnings((2, 2, 2), (1, 1, 1)) == []
    assert len(card.warnings((4, 1, 1), (1, 1, 1))) == 3


def test_the_weights_for_thick_slices_cover_factors_from_two_to_eight():
    card = shipped_network(thick=True).card
    assert card is not None
    assert (card.input, card.degradation.depth.profile) == ("consistent", "box")
    assert card.covers((2, 1, 1))
    assert card.covers((8, 1, 1))
    assert not card.covers((2, 2, 2))
