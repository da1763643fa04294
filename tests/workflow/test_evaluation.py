"""`voxlift evaluate` on several references: one that fails does so alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from scipy.ndimage import gaussian_filter

import workflow.evaluate.evaluation as evaluation
from configs.axes import FileShape
from configs.schema import Resources
from tasks.volume.grid import Grid
from tasks.volume.nifti import write_slabs, write_volume
from tests.networks import small_restorer
from tests.workflow.light_restorer import LightRestorer
from workflow.tracking import input_volume
from workflow.tracking.reading import read_runs

SHAPE = FileShape(20, 22, 24)
GRID = Grid(SHAPE, np.eye(4))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.keras"
    small_restorer().save(path)
    return str(path)


@pytest.fixture
def place(tmp_path, store, monkeypatch):
    """Good references, and one that is bad in each way."""
    monkeypatch.setattr("workflow.restore.restoration.worker_restorer", LightRestorer)
    # One worker, and no second try: less to start.
    monkeypatch.setattr("workflow.commands.evaluate.resources_of", lambda *_: Resources(workers=1, retries=0))
    blobs = gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 2).astype(np.float32)
    anatomy = 100 * (blobs - blobs.min())
    for name in ("good", "gone", "other"):
        write_volume(tmp_path / f"{name}.nii.gz", anatomy, GRID)
    write_volume(tmp_path / "bright.nii", 1e6 * anatomy, GRID)
    write_volume(tmp_path / "dark.nii", -1e6 * anatomy, GRID)
    write_volume(tmp_path / "nan.nii", np.full(SHAPE, np.nan, np.float32), GRID)
    write_slabs(tmp_path / "series.nii", [anatomy, anatomy], GRID, n_timepoints=2)
    (tmp_path / "text.nii").write_text("hello")
    whole = (tmp_path / "good.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def latest(store):
    """The run that began last, as MLflow has it."""
    client = MlflowClient(store.uri)
    return client.get_run(read_runs(client, "voxlift")[0].run_id)


def lose(name):
    """Describe references, and remove one of that name once it is described."""

    def described(path, role, *, record_paths):
        found = input_volume(path, role, record_paths=record_paths)
        if path.name == name:
            path.unlink()
        return found

    return described


@pytest.mark.usefixtures("ray_cluster")
def test_a_reference_that_fails_does_so_alone(place, model, store, voxlift, monkeypatch):
    failing = {
        "text.nii": ("input", "Cannot read text.nii"),
        "bright.nii": ("run", "bright.nii: RuntimeError: too bright"),
        "series.nii": ("input", "it holds 2 time points"),
        "nan.nii": ("input", "nan.nii"),
        "gone.nii.gz": ("input", "Cannot read gone.nii.gz: there is no such file"),
        "cut.nii.gz": ("input", "Cannot read cut.nii.gz"),
        "dark.nii": ("run", r"Cannot restore dark.nii: the network made"),
    }
    names = ["text.nii", "good.nii.gz", *list(failing)[1:], "other.nii.gz"]
    monkeypatch.setattr(evaluation, "input_volume", lose("gone.nii.gz"))
    options = ["--model", model, "--degradation", "iso2x"]
    status, out, err = voxlift("evaluate", *(str(place / name) for name in names), *options, "--json")
    assert status == 1, err
    report = json.loads(out)
    assert [Path(one["reference"]).name for one in report["volumes"]] == names
    for one in report["volumes"]:
        name = Path(one["reference"]).name
        if name not in failing:
            assert one["status"] == "done"
            assert one["psnr"]["cubic"] > one["psnr"]["trilinear"]
            continue
        cause, reason = failing[name]
        assert (one["status"], one["cause"]) == ("failed", cause)
        assert reason in one["error"]
        assert f"voxlift: {one['error']}\n" in err
    first, last = (one for one in report["volumes"] if one["status"] == "done")
    assert report["overall"]["psnr"] == first["psnr"] == last["psnr"]

    run = latest(store)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["failed"] == len(failing)
    assert run.data.metrics["psnr/restored"] == report["overall"]["psnr"]["restored"]
    client, run_id = MlflowClient(store.uri), run.info.run_id
    steps = [one.step for one in client.get_metric_history(run_id, "volumes/psnr/restored")]
    assert steps == [1, 8]
    assert [one.path for one in client.list_artifacts(run_id, "quality")] == ["quality/2.html", "quality/9.html"]
    assert [one.path for one in client.list_artifacts(run_id, "pictures")] == ["pictures/2.png"]
    note = run.data.tags["mlflow.note.content"]
    assert "Means over 2 of 9 volume(s)" in note
    assert "- Volume 1 failed: the file cannot be used." in note
    assert "- Volume 3 failed: it could not be restored, scored or recorded." in note
    assert not [name for name in names if name.split(".")[0] in note]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("names", "status"), [(["bright.nii", "cut.nii.gz"], 1), (["nan.nii", "cut.nii.gz"], 2)])
def test_a_call_whose_references_all_fail_ends_failed(place, model, store, voxlift, names, status):
    options = ["--model", model, "--degradation", "iso2x"]
    ended, out, err = voxlift("evaluate", *(str(place / name) for name in names), *options)
    assert ended == status, err
    assert "voxlift: Cannot read cut.nii.gz" in err
    rows = [line.split() for line in out.splitlines()]
    assert [[name, "failed"] for name in names] == [row for row in rows if row[1:] == ["failed"]]
    run = latest(store)
    assert run.info.status == "FAILED"
    assert "psnr/restored" not in run.data.metrics


def test_references_that_can_all_not_be_used_are_refused_before_any_work(place, model, store, voxlift):
    client, options = MlflowClient(store.uri), ["--model", model, "--degradation", "iso2x"]
    experiments = [one.experiment_id for one in client.search_experiments()]
    before = len(client.search_runs(experiments))
    for names in (["text.nii"], ["text.nii", "series.nii", "absent.nii"]):
        status, _, err = voxlift("evaluate", *(str(place / name) for name in names), *options)
        assert status == 2
        assert [line for line in err.splitlines() if line.startswith("voxlift: ")] == err.splitlines()[-1:]
        assert all(name in err for name in names)
    assert len(client.search_runs(experiments)) == before
