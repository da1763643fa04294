import keras
import numpy as np
import pytest

from configs.errors import ShapeError
from models.network.restorer import build_restorer
from models.stages.stage import Stage

FOUR = (
    Stage(12, (4, 4, 4), (2, 2, 2)),
    Stage(8, (4, 4, 4), (2, 2, 2)),
    Stage(4, (4, 4, 4), (2, 2, 2)),
    Stage(1, (3, 4, 4), (1, 2, 2)),
)
THREE = (Stage(8, (4, 4, 4), (2, 2, 2)), Stage(4, (4, 4, 4), (2, 2, 2)), Stage(1, (4, 8, 8), (2, 4, 4)))
ROUTES = pytest.mark.parametrize("stages", [FOUR, THREE], ids=["four", "three"])


@ROUTES
def test_a_patch_of_16x112x112_has_the_latent_of_the_design(stages):
    model = build_restorer(stages)
    encoder = keras.Model(model.input, model.get_layer("encode_0_conv_0").output)
    assert encoder.compute_output_shape((2, 16, 112, 112, 1)) == (2, 2, 7, 7, 64)


@ROUTES
def test_an_untrained_restorer_returns_its_input(stages):
    volume = np.random.default_rng(0).random((1, 16, 32, 48, 1), np.float32)
    np.testing.assert_array_equal(build_restorer(stages)(volume), volume)


@pytest.mark.parametrize("skip", ["concatenate", "add"])
def test_every_stage_is_joined_with_the_encoder(skip):
    model = build_restorer(FOUR, skip=skip, convolutions=0)
    for level in range(3):
        stage, encoded = model.get_layer(f"join_{level}").input
        assert stage.shape == encoded.shape


def test_it_comes_back_from_its_file(tmp_path):
    model = build_restorer(THREE, latent_filters=8)
    model.get_layer("stage_2").kernel.assign(keras.random.normal((4, 8, 8, 1, 4), seed=1))
    model.save(tmp_path / "restorer.keras")
    again = keras.saving.load_model(tmp_path / "restorer.keras", compile=False, safe_mode=True)
    volume = np.random.default_rng(0).random((1, 8, 16, 16, 1), np.float32)
    np.testing.assert_array_equal(model(volume), again(volume))
    assert not np.array_equal(again(volume), volume)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((), "the last stage must have 1 filter"),
        (FOUR[:-1], "the last stage must have 1 filter"),
        ((Stage(1, (2, 3, 3), (2, 4, 4)),), "stage 1 has kernel 3 below stride 4 along height"),
        ((Stage(1, (4, 4, 4), (2, 2, 2), padding="valid"),), "stage 1 must have padding same"),
    ],
)
def test_stages_that_are_no_way_back_are_refused(stages, message):
    with pytest.raises(ShapeError, match=message):
        build_restorer(stages)
