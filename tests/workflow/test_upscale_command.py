"""`voxlift upscale`: one JSON object, exit status, and what is recorded."""

import json

import numpy as np
import pytest
from mlflow import MlflowClient

from tasks.errors import InputError
from tasks.geometry import Grid
from tasks.volumes import write_volume
from tests.networks import small_restorer
from tests.workflow.light_restorer import LightRestorer
from workflow.cli import app

KEYS = {
    *("input", "output", "status", "input_shape", "output_shape", "output_spacing", "scale", "shards"),
    *("shards_resumed", "retries", "seconds", "sha256", "consistency"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.keras"
    small_restorer().save(path)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr("workflow.restoration.Restorer", LightRestorer)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    for name in ("sub-01_T1w.nii.gz", "other.nii"):
        write_volume(
            tmp_path / name, np.random.default_rng(0).random((9, 10, 11), np.float32), Grid((9, 10, 11), np.eye(4))
        )
    (tmp_path / "text.nii").write_text("hello")
    return tmp_path


def upscale(*arguments):
    return app(["upscale", *map(str, arguments)], standalone_mode=False)


@pytest.mark.usefixtures("ray_cluster")
def test_a_failed_volume_is_listed_and_the_others_are_written(place, model, capfd):
    options = ["--out", place / "out", "--model", model, "--spacing", "0.5,0.5,0.5", "--workers", "1", "--json"]
    assert upscale(place / "sub-01_T1w.nii.gz", place / "text.nii", place / "other.nii", *options) == 1
    said = capfd.readouterr()
    report = json.loads(said.out)
    assert "voxlift: Cannot read text.nii" in said.err
    assert [volume["status"] for volume in report["volumes"]] == ["done", "failed", "done"]
    assert set(report["volumes"][0]) >= KEYS
    assert report["volumes"][0]["output"].endswith("sub-01_rec-voxlift_T1w.nii.gz")
    assert report["volumes"][0]["output_spacing"] == pytest.approx([0.5] * 3)
    assert {"overhead", "halo", "core_shape", "budget_mib"} <= set(report["plan"])
    assert {"workers", "peak_rss_mib", "seconds", "voxels_per_second"} <= set(report)

    run = MlflowClient(report["mlflow"]["tracking_uri"]).get_run(report["mlflow"]["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["failed"] == 1
    assert str(place) not in json.dumps([run.data.params, run.data.tags])


def test_what_cannot_be_done_is_refused(place, model):
    aim = ["--out", place / "out", "--model", model]
    with pytest.raises(InputError, match="Give --scale I,J,K or --spacing"):
        upscale(place / "other.nii", *aim)
    with pytest.raises(InputError, match="exclude each other"):
        upscale(place / "other.nii", *aim, "--scale", "2,2,2", "--spacing", "1,1,1")
    with pytest.raises(InputError, match=r"Cannot read text\.nii"):
        upscale(place / "text.nii", *aim, "--scale", "2,2,2")
    with pytest.raises(InputError, match=r"holds 0 \.keras files"):
        upscale(place / "other.nii", "--out", place / "out", "--model", place, "--scale", "2,2,2")
    assert not (place / "out").exists()
