"""The weights that ship: by digest, and by the numbers that they restore."""

import time
from dataclasses import dataclass

import numpy as np
import pytest

from configs.axes import NetworkShape
from configs.degradation import Degradation, named_degradation
from tasks.artifacts.network_file import NetworkFile, parse_network
from tasks.artifacts.saved_models import load_model
from tasks.artifacts.shipped import DIGESTS, FINENESS, compact, rounded, ship, shipped_network
from tasks.imaging.degrade import degrade
from tasks.sharding.restore import coarse_volume
from tasks.volume.intensity import CLIP, Intensity
from tests.networks import small_restorer

SHAPE = NetworkShape(32, 48, 48)
MAX_MEGABYTES = 5  # of all


@dataclass(frozen=True)
class Shipped:
    """A network that ships.

    Args:
        network: The network.
        recipe: An acquisition that it is for.
        stored: Voxels that it restores, across a shell.
        remaining: Squared error over that of the input, at most.
    """

    network: NetworkFile
    recipe: Degradation
    stored: list[float]
    remaining: float


SHIPPED = (
    Shipped(
        shipped_network(),
        named_degradation("kspace2x"),
        [-0.0265, 0.0734, 0.4461, 0.6842, 0.7435, 0.7795, 0.8074, 0.7406],
        0.85,
    ),
    Shipped(
        shipped_network(thick=True),
        named_degradation("thick4x"),
        [-0.0027, 0.0694, 0.7003, 0.6228, 0.58, 0.8256, 0.9026, 0.629],
        0.94,
    ),
    Shipped(
        shipped_network(known=named_degradation("kspace2x")),
        named_degradation("kspace2x"),
        [-0.0433, 0.0628, 0.4589, 0.6512, 0.7356, 0.7757, 0.8221, 0.7443],
        0.85,
    ),
    Shipped(
        shipped_network(known=named_degradation("box2x")),
        named_degradation("box2x"),
        [-0.0583, 0.0379, 0.5423, 0.6944, 0.7051, 0.7737, 0.7953, 0.6875],
        0.85,
    ),
    Shipped(
        shipped_network(known=named_degradation("iso2x")),
        named_degradation("iso2x"),
        [-0.032, 0.0519, 0.4896, 0.7237, 0.7569, 0.7776, 0.7953, 0.7166],
        0.85,
    ),
    Shipped(
        shipped_network(thick=True, known=named_degradation("thick4x")),
        named_degradation("thick4x"),
        [-0.0218, 0.0524, 0.6619, 0.6162, 0.5972, 0.8391, 0.8939, 0.6229],
        0.94,
    ),
)


@pytest.fixture(scope="module", params=SHIPPED, ids=lambda shipped: shipped.network.name)
def restored(request, tmp_path_factory):
    """A ball with a bright shell, degraded and restored."""
    shipped = request.param
    path = tmp_path_factory.mktemp("model") / "shipped.keras"
    path.write_bytes(shipped.network.content)
    places = np.indices(SHAPE) - np.reshape([15.5, 23.5, 23.5], (3, 1, 1, 1))
    radius = np.sqrt((places**2).sum(axis=0))
    fine = (0.6 * (radius < 14) + 0.3 * ((radius > 9) & (radius < 11))).astype(np.float32)
    volume = coarse_volume(degrade(fine, shipped.recipe), SHAPE, Intensity(0, 1), shipped.recipe)
    given = volume.input_window(((0, 32), (0, 48), (0, 48)))
    seen = np.clip(given, 0, np.float32(CLIP))
    found = load_model(path)(seen[None, ..., None], training=False).numpy()[0, ..., 0] + given - seen
    return shipped, fine, given, found


def test_the_shipped_weights_restore_a_known_volume_to_stored_numbers(restored):
    shipped, _, _, found = restored
    np.testing.assert_allclose(found[16, 24, 8:16], shipped.stored, atol=1e-4)


def test_the_shipped_weights_come_nearer_to_the_truth(restored):
    shipped, fine, given, found = restored
    assert np.mean((found - fine) ** 2) < shipped.remaining * np.mean((given - fine) ** 2)


def test_the_shipped_weights_are_small():
    assert sum(len(shipped.network.content) for shipped in SHIPPED) < MAX_MEGABYTES * 1e6


def test_weights_are_shipped_in_less_space(tmp_path):
    """Keras loads the rounded numbers; the digest is that of the file."""
    model, folder = small_restorer(), tmp_path / "weights"
    folder.mkdir()
    model.save(tmp_path / "small.keras")
    ship([tmp_path / "small.keras"], folder)
    content = (folder / "small.keras").read_bytes()
    second = int(time.time())
    while int(time.time()) == second:  # of which there is nothing in the file
        pass
    assert compact((tmp_path / "small.keras").read_bytes()) == content
    assert len(content) < (tmp_path / "small.keras").stat().st_size
    for found, given in zip(load_model(folder / "small.keras").get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, rounded(given).astype(np.float32))
        step = np.std(given) / FINENESS * 2**0.5
        np.testing.assert_allclose(found, given, rtol=2**-11, atol=step / 2)
    assert (folder / DIGESTS).read_text() == f"{parse_network('small.keras', content).digest}  small.keras\n"


def test_a_folder_of_models_ships_as_the_mean_of_their_weights(tmp_path):
    trained, folder = tmp_path / "several", tmp_path / "weights"
    trained.mkdir()
    folder.mkdir()
    models = [small_restorer() for _ in range(3)]
    for number, model in enumerate(models):
        model.set_weights([weights + 0.1 * number for weights in model.get_weights()])
        model.save(trained / f"{number}.keras")
    ship([trained], folder)
    assert [path.name for path in folder.glob("*.keras")] == ["several.keras"]
    given = zip(*(model.get_weights() for model in models), strict=True)
    for found, weights in zip(load_model(folder / "several.keras").get_weights(), given, strict=True):
        np.testing.assert_array_equal(found, rounded(np.mean(weights, axis=0, dtype=np.float64)).astype(np.float32))


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


@pytest.mark.parametrize("degradation", ["kspace2x", "box2x", "iso2x"])
def test_the_expert_for_a_known_acquisition_was_trained_for_it(degradation):
    card = shipped_network(known=named_degradation(degradation)).card
    assert card is not None
    assert (card.input, card.degradation.name) == ("consistent", degradation)
