"""`voxlift upscale --adapt`: a network is trained on the thick slices that it then restores."""

import json
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from scipy.ndimage import gaussian_filter

from configs.data import HeldOut
from configs.errors import ConfigError, InputError
from configs.schema import Resources
from tasks.artifacts.network_file import read_network
from tasks.artifacts.saved_models import load_model
from tasks.artifacts.shipped import shipped_network
from tasks.volume.grid import Grid
from tasks.volume.inspection import inspect_volume
from tasks.volume.nifti import read_volume, write_volume
from tests.networks import small_restorer
from workflow.cli import app
from workflow.upscale.adaptation import EARLY_STOPPING, adaptation_config, require_card
from workflow.upscale.plan import UpscaleRequest, plan_volume

QUICK = ("training.steps=2", "training.patch=[16, 32, 32]", "data.mixture={volumes: 0, slices: 1}")
STILL = ("training.optimizer=sgd", "training.learning_rate=1e-12")
UNVALIDATED = "training.early_stopping=null"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A thick-slice scan whose slices lie along its first file axis, one of other slices, and an isotropic one."""
    folder = tmp_path_factory.mktemp("scans")
    blobs = gaussian_filter(np.random.default_rng(0).normal(size=(12, 40, 44)), 2) > 0
    for name, thickness in (("thick", 4), ("thicker", 6), ("cube", 1)):
        affine = np.diag([thickness, 1, 1, 1])
        write_volume(folder / f"{name}.nii.gz", blobs.astype(np.float32) * 900.5 + 100, Grid(blobs.shape, affine))
    noise = 45 * np.random.default_rng(1).standard_normal(blobs.shape)
    noisy = (blobs * 900.5 + 300 + noise).astype(np.float32)
    write_volume(folder / "noisy.nii.gz", noisy, Grid(blobs.shape, np.diag([4, 1, 1, 1])))
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
    report = upscale(capfd, folder, "fresh", "--adapt", settings=(*QUICK, UNVALIDATED))
    (volume,) = report["volumes"]
    assert (volume["status"], volume["output_shape"]) == ("done", [48, 40, 44])
    assert not [warning for warning in volume["warnings"] if "trained" in warning]
    model = folder / "fresh" / "adapted" / "model.keras"
    assert report["adapted_model"] == report["adaptation"]["model"] == str(model)
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
    again = upscale(capfd, folder, "fresh", "--adapt", "--resume", settings=(*QUICK, UNVALIDATED))
    assert again["volumes"][0]["status"] == "resumed"
    assert model.read_bytes() == begun


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_an_adaptation_that_improves_nothing_is_declined(folder, capfd):
    plain = upscale(capfd, folder, "plain")
    declined = upscale(capfd, folder, "declined", "--adapt", settings=(*QUICK, *STILL))
    scores = declined["adaptation"]
    assert scores["psnr"] == scores["psnr_before"] > 0
    assert declined["adapted_model"] is None
    assert declined["volumes"][0]["sha256"] == plain["volumes"][0]["sha256"]
    again = upscale(capfd, folder, "declined", "--adapt", "--resume", settings=(*QUICK, *STILL))
    assert (again["adaptation"], again["volumes"][0]["status"]) == (scores, "resumed")

    # Of a given network the weights count.
    model = shipped_copy(folder)
    started = upscale(capfd, folder, "started", "--adapt", "--model", model, settings=(*QUICK, *STILL))
    weights = [load_model(Path(path)).get_weights() for path in (model, started["adaptation"]["model"])]
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


def shipped_copy(folder):
    path = folder / "copy.keras"
    path.write_bytes(shipped_network(thick=True).content)
    return path


def config(folder, *names, scale=None, spacing=None, model=None, settings=(), **options):
    network = shipped_network() if model is None else read_network(model)
    request = UpscaleRequest(
        [folder / f"{name}.nii.gz" for name in names],
        folder,
        network,
        Resources(),
        scale=scale,
        spacing=spacing,
        thick_network=None if model else shipped_network(thick=True),
        experts=not model,
        **options,
    )
    inspected = [inspect_volume(source) for source in request.sources]
    plans = [plan_volume(request, one.scan, folder / one.scan.path.name, one.extent) for one in inspected]
    return adaptation_config(plans, Resources(workers=3), settings)


def test_the_preset_is_fitted_to_volume_scale_and_acquisition(folder):
    preset = config(folder, "thick")
    assert preset.degradation.scale == (4, 1, 1)
    assert preset.data.volumes == (folder / "thick.nii.gz",)
    assert preset.data.held_out == HeldOut(axis=0, start=0.55, stop=0.75, gap=1)
    assert (preset.resources.workers, preset.training.steps, preset.training.early_stopping) == (
        3,
        2000,
        EARLY_STOPPING,
    )
    assert preset.network.input == "consistent"  # that of the weights that ship
    assert config(folder, "thick", scale=(2, 1, 1)).degradation.scale == (2, 1, 1)
    assert config(folder, "thicker", spacing=(1, 1, 1)).degradation.scale == (6, 1, 1)
    assert config(folder, "thick", "thicker", scale=(4, 1, 1), settings=["training.steps=7"]).training.steps == 7
    for profile in ("gaussian", "kspace"):
        assert config(folder, "thick", profile=profile).degradation.depth.profile == profile


def test_training_has_the_noise_of_the_scan(folder):
    """Means of four sharp voxels have half of it."""
    assert config(folder, "thick").degradation.noise.sigma == 0
    brightest = np.quantile(read_volume(folder / "noisy.nii.gz").voxels, 0.995)
    noise = config(folder, "noisy", scale=(4, 1, 1)).degradation.noise
    assert noise.sigma == pytest.approx(45 / brightest * np.sqrt(3 / 4), rel=0.1)


def test_what_cannot_be_adapted_to_is_refused(folder):
    with pytest.raises(InputError, match=r"across them, along i, and the scale is 4,2,1"):
        config(folder, "thick", scale=(4, 2, 1))
    with pytest.raises(InputError, match="scales across the slices reach from 4 to 6"):
        config(folder, "thick", "thicker", spacing=(1, 1, 1))
    with pytest.raises(ConfigError, match=r"Did you mean training\.steps"):
        config(folder, "thick", settings=["training.step=7"])
    small_restorer().save(folder / "no-card.keras")
    with pytest.raises(InputError, match=r"no-card\.keras: it carries no card"):
        require_card(read_network(folder / "no-card.keras"))


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
