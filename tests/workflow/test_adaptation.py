"""`voxlift upscale --adapt`: a network is trained on the thick slices that it then restores."""

import json
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from scipy.ndimage import gaussian_filter

from configs.errors import ConfigError, InputError
from configs.schema import Resources
from tasks.artifacts.network_file import read_network
from tasks.artifacts.saved_models import load_model
from tasks.volume.grid import Grid
from tasks.volume.nifti import open_volume, write_volume
from tests.networks import small_restorer
from tests.tasks.small_training import SMALL
from workflow.cli import app
from workflow.upscale.adaptation import adaptation_config

QUICK = (*SMALL, "training.steps=2", "data.mixture={volumes: 0, slices: 1}")
STILL = ("training.optimizer=sgd", "training.learning_rate=1e-12")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A thick-slice scan whose slices lie along its first file axis, one of other slices, and an isotropic one."""
    folder = tmp_path_factory.mktemp("scans")
    blobs = gaussian_filter(np.random.default_rng(0).normal(size=(12, 40, 44)), 2) > 0
    for name, thickness in (("thick", 4), ("thicker", 6), ("cube", 1)):
        affine = np.diag([thickness, 1, 1, 1])
        write_volume(folder / f"{name}.nii.gz", blobs.astype(np.float32) * 900.5 + 100, Grid(blobs.shape, affine))
    return folder


@pytest.fixture(autouse=True)
def _store(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")


def upscale(capfd, folder, out, *options, settings=()):
    rules = [argument for rule in settings for argument in ("--set", rule)]
    arguments = [folder / "thick.nii.gz", "--out", folder / out, "--workers", "1", "--json", *options, *rules]
    app(["upscale", *map(str, arguments)], standalone_mode=False)
    return json.loads(capfd.readouterr().out)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_a_scan_teaches_the_network_that_restores_it(folder, capfd):
    report = upscale(capfd, folder, "fresh", "--adapt", settings=QUICK)
    (volume,) = report["volumes"]
    assert (volume["status"], volume["output_shape"]) == ("done", [48, 40, 44])
    assert not [warning for warning in volume["warnings"] if "trained" in warning]
    model = folder / "fresh" / "adapted" / "model.keras"
    assert report["adapted_model"] == str(model)
    card = read_network(model).card
    assert card is not None
    assert (card.degradation.scale, card.steps, card.training_data.mixture.slices) == ((4, 1, 1), 2, 1)
    store = f"sqlite:///{folder / 'mlflow.db'}"  # that of the process is what an earlier test has left
    client = MlflowClient(store, store)
    experiment = client.get_experiment_by_name("voxlift")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["adapt", "upscale"]
    assert client.search_registered_models() == []

    begun = model.read_bytes()
    again = upscale(capfd, folder, "fresh", "--adapt", "--resume", settings=QUICK)
    assert again["volumes"][0]["status"] == "resumed"
    assert model.read_bytes() == begun

    # The network of the model counts, not that of the preset; with no learning its weights stay.
    started = upscale(capfd, folder, "started", "--adapt", "--model", model, settings=(*QUICK[3:], *STILL))
    weights = [load_model(Path(path)).get_weights() for path in (model, started["adapted_model"])]
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


def config(folder, *names, scale=None, spacing=None, model=None, settings=()):
    scans = [open_volume(folder / f"{name}.nii.gz") for name in names]
    given = None if model is None else read_network(model)
    return adaptation_config(scans, given, scale, spacing, Resources(workers=3), settings)


def test_the_preset_is_fitted_to_volume_and_scale(folder):
    preset = config(folder, "thick")
    assert preset.degradation.scale == (4, 1, 1)
    assert preset.data.volumes == (folder / "thick.nii.gz",)
    assert (preset.resources.workers, preset.training.steps) == (3, 2000)
    assert config(folder, "thick", scale=(2, 1, 1)).degradation.scale == (2, 1, 1)
    assert config(folder, "thicker", spacing=(1, 1, 1)).degradation.scale == (6, 1, 1)
    assert config(folder, "thick", "thicker", settings=["training.steps=7"]).training.steps == 7


def test_what_cannot_be_adapted_to_is_refused(folder):
    with pytest.raises(InputError, match=r"across them, along i, and the scale is 4,2,1"):
        config(folder, "thick", scale=(4, 2, 1))
    with pytest.raises(InputError, match="scales across the slices reach from 4 to 6"):
        config(folder, "thick", "thicker", spacing=(1, 1, 1))
    with pytest.raises(ConfigError, match=r"Did you mean training\.steps"):
        config(folder, "thick", settings=["training.step=7"])
    small_restorer().save(folder / "no-card.keras")
    with pytest.raises(InputError, match=r"no-card\.keras: it carries no card"):
        config(folder, "thick", model=folder / "no-card.keras")


def test_settings_without_adaptation_are_refused(folder, capfd):
    with pytest.raises(InputError, match=r"Cannot apply --set training\.steps=3"):
        upscale(capfd, folder, "none", "--model", "x", settings=["training.steps=3"])
    assert not (folder / "none").exists()


def test_an_adaptation_is_not_replaced_unawares(folder, capfd):
    made_from = folder / "replaced" / "adapted" / "made-from.json"
    made_from.parent.mkdir(parents=True)
    made_from.write_text("other volumes")
    for options, problem in (([], "there is one already"), (["--resume"], "was made from other volumes")):
        with pytest.raises(InputError, match=f"{problem}.* --resume .* --overwrite"):
            upscale(capfd, folder, "replaced", "--adapt", *options, settings=QUICK)
    assert made_from.read_text() == "other volumes"
