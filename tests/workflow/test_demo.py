"""The demo in small: a synthetic volume, a few steps, real Ray, real MLflow."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import nibabel
import numpy as np
import pytest
from mlflow import MlflowClient
from scipy.ndimage import gaussian_filter

from tests.browser import chromium, console_errors
from tests.conftest import unused_port
from tests.workflow.conftest import serving
from workflow.pages.index import read_summary
from workflow.tracking.verification import verify

ROOT = Path(__file__).parents[2]
SMALL = (
    "network.latent_filters=4",
    "network.convolutions=1",
    "network.stages=[{filters: 4, kernel_size: [4, 4, 4], strides: [2, 2, 2]},"
    " {filters: 1, kernel_size: [3, 4, 4], strides: [1, 2, 2]}]",
    "training.steps=6",
    "training.warmup_steps=1",
    "training.patch=[8, 16, 16]",
    "training.replicas=2",
    "data.held_out.gap=4",
    "resources.memory_budget_mib=34",
)


def voxlift(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    without = {name: value for name, value in os.environ.items() if name not in {"RAY_ADDRESS", "MLFLOW_TRACKING_URI"}}
    return subprocess.run(
        [sys.executable, "-m", "workflow", *arguments],
        cwd=folder,
        env=without | {"PYTHONPATH": str(ROOT)} | dict(environment or {}),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def affine():
    """Oblique, anisotropic, off the origin."""
    angle = 0.2
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    whole = np.eye(4)
    whole[:3, :3] = turn @ np.diag([0.9, 1.1, 1.2])
    whole[:3, 3] = (-20, 31, 7)
    return whole


@pytest.fixture(scope="module")
def demo(tmp_path_factory, affine, any_store):
    """Recorded where nothing names a store, in a SQLite file of its own, and by a real server."""
    folder = tmp_path_factory.mktemp("demo")
    random = np.random.default_rng(0)
    blobs = gaussian_filter(random.normal(size=(37, 60, 41)), 2) > 0
    image = nibabel.Nifti1Image((blobs * 900 + 100.5).astype(np.float32), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header["descrip"] = b"DOE^JANE 1970"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"born DOE^JANE"))
    (folder / "jane").mkdir()
    nibabel.save(image, folder / "jane" / "blobs.nii.gz")
    overrides = [word for key in SMALL for word in ("--set", key)]
    server = {"MLFLOW_TRACKING_URI": any_store.uri} if any_store.uri.startswith("http") else {}
    arguments = ("demo", "--volume", "jane/blobs.nii.gz", "--out", "out", "--json", *overrides)
    done = voxlift(folder, *arguments, environment=server)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["mlflow"]["tracking_uri"] == (any_store.uri if server else f"sqlite:///{folder / 'mlflow.db'}")
    return folder, report


@pytest.fixture(scope="module")
def kept(demo, any_store):
    """Every file of the store in which the demo is recorded."""
    if any_store.uri.startswith("http"):
        places = [any_store.artifacts.parent / "server.db", *any_store.artifacts.rglob("*")]
    else:
        places = [demo[0] / "mlflow.db", *(demo[0] / "mlruns").rglob("*")]
    return [path for path in places if path.is_file()]


def test_the_report_is_complete(demo):
    _, report = demo
    assert {"input", "output", "output_shape", "output_spacing", "picture"} <= set(report)
    assert {"tracking_uri", "experiment", "run_id"} <= set(report["mlflow"])
    for measure in ("psnr", "ssim"):
        assert set(report[measure]) == {"restored", "corrected", "cubic", "trilinear"}
        assert all(np.isfinite(value) for value in report[measure].values())
    best = max(report["psnr"][name] for name in ("corrected", "cubic", "trilinear"))
    assert report["gain"] == pytest.approx(report["psnr"]["restored"] - best)
    assert {"steps", "seconds", "replicas", "device"} <= set(report["training"])
    assert report["training"]["replicas"] == 2
    assert report["training"]["latent_shape"] == [2, 4, 4, 4, 4]
    assert {"shards", "workers", "seconds", "voxels_per_second"} <= set(report["inference"])
    assert report["inference"]["shards"] >= 2
    assert report["inference"]["workers"] == 2
    assert report["output_shape"] == [37, 60, 41]
    assert report["output_spacing"] == pytest.approx([0.9, 1.1, 1.2])


def test_the_output_lies_where_the_reference_lay(demo, affine):
    folder, report = demo
    image = nibabel.load(report["output"])
    assert image.shape == (37, 60, 41)
    np.testing.assert_allclose(image.affine, nibabel.load(folder / report["reference"]).affine, atol=1e-6)
    for found in (image.affine, image.get_qform(), image.get_sform()):
        np.testing.assert_allclose(found, affine, atol=1e-5)
    np.testing.assert_allclose(image.header.get_zooms(), [0.9, 1.1, 1.2], atol=1e-6)


def test_the_degraded_input_keeps_the_field_of_view(demo, affine):
    _, report = demo
    image = nibabel.load(report["input"])
    assert image.shape == (19, 30, 21)
    corner = affine @ [-0.5, -0.5, -0.5, 1]
    np.testing.assert_allclose(image.affine @ [-0.5, -0.5, -0.5, 1], corner, atol=1e-4)
    np.testing.assert_allclose(image.header.get_zooms(), [1.8, 2.2, 2.4], atol=1e-6)


def test_the_run_is_recorded_whole(demo):
    folder, report = demo
    client = MlflowClient(tracking_uri=report["mlflow"]["tracking_uri"])
    run = client.get_run(report["mlflow"]["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["training.steps"] == "6"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert run.data.metrics["psnr/restored"] == report["psnr"]["restored"]
    assert run.data.metrics["psnr/gain"] == report["gain"]
    kept = {
        entry.path: {e.path for e in client.list_artifacts(run.info.run_id, entry.path)}
        for entry in client.list_artifacts(run.info.run_id)
    }
    assert kept["volumes"] == {"volumes/input.nii.gz", "volumes/restored.nii.gz"}
    assert kept["pictures"] == {"pictures/comparison.png"}
    assert kept["quality"] == {"quality/quality.html"}
    assert str(folder) not in str(run.data.to_dictionary())


def test_nothing_recorded_names_a_person(demo, kept):
    """Neither the folder and name of the input nor what its header says; the output for the user keeps the header."""
    _, report = demo
    assert len(kept) > 15
    for file in kept:
        content = file.read_bytes()
        content = gzip.decompress(content) if file.suffix == ".gz" else content
        for word in (b"jane", b"JANE", b"blobs"):
            assert word not in content, file
    assert b"DOE^JANE" in nibabel.load(report["output"]).header["descrip"].item()


@pytest.mark.parametrize("where", ["run", "folder"])
def test_every_artifact_satisfies_its_contract(demo, monkeypatch, where):
    folder, report = demo
    monkeypatch.setenv("MLFLOW_TRACKING_URI", report["mlflow"]["tracking_uri"])
    found = verify(report["mlflow"]["run_id"] if where == "run" else str(folder / "out"))
    assert found.damages == ()
    assert found.artifacts >= 4


def test_the_run_records_how_it_was_made(demo):
    _, report = demo
    run = MlflowClient(tracking_uri=report["mlflow"]["tracking_uri"]).get_run(report["mlflow"]["run_id"])
    assert {"mlflow.source.git.commit", "code.dirty", "hardware.cpu", "seed", "degradation"} <= set(run.data.tags)
    assert f"| restored | {report['psnr']['restored']:.2f} |" in run.data.tags["mlflow.note.content"]
    (given,) = run.inputs.dataset_inputs
    assert json.loads(given.dataset.profile)["shape"] == [37, 60, 41]
    assert {"seconds/training", "seconds/inference", "shards/count", "system/cpu_utilization_percentage"} <= set(
        run.data.metrics
    )


def test_the_picture_is_there(demo):
    _, report = demo
    assert Path(report["picture"]).read_bytes().startswith(b"\x89PNG")


def test_the_output_passes_the_check_of_its_own_page(demo):
    _, report = demo
    summary = read_summary(Path(report["quality_page"]))
    assert summary is not None
    assert (summary.verdict, summary.warnings) == ("pass", 0), summary


@pytest.mark.slow
def test_the_page_of_the_run_opens_without_an_error(demo, tmp_path):
    """MLflow's own page, opened as the demo says, and the QC page inside it."""
    _, report = demo
    uri, run_id = report["mlflow"]["tracking_uri"], report["mlflow"]["run_id"]
    experiment = MlflowClient(tracking_uri=uri).get_run(run_id).info.experiment_id
    with ExitStack() as stack:
        if uri.startswith("sqlite"):
            port = str(unused_port())
            arguments = ("ui", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", port)
            uri = f"http://127.0.0.1:{port}"
            stack.enter_context(serving(tmp_path, f"{uri}/health", *arguments))
        page = f"{uri}/#/experiments/{experiment}/runs/{run_id}"
        for address, words in {
            page: ("Degraded a volume of 37x60x41", "psnr/restored", "voxlift demo"),
            f"{page}/artifacts/quality/quality.html": ("quality.html", "<iframe"),
        }.items():
            opened = chromium("--virtual-time-budget=30000", "--dump-dom", address)
            assert console_errors(opened) == []
            for word in words:
                assert word in opened.stdout, (address, word)


@pytest.fixture(scope="module")
def bad_inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 9), np.float32), np.eye(4)), folder / "flat.nii.gz")
    (folder / "text.nii.gz").write_text("dear radiologist")
    (folder / "folder").mkdir()
    return folder


@pytest.mark.parametrize("name", ["absent.nii.gz", "flat.nii.gz", "folder", "text.nii.gz"])
def test_bad_input_gets_one_message(bad_inputs, name):
    done = voxlift(bad_inputs, "demo", "--volume", name, "--out", "out")
    assert done.returncode == 2
    assert name in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert all(line.startswith("Loading voxlift …") for line in done.stdout.splitlines())
    assert not (bad_inputs / "out").exists()
    assert not (bad_inputs / "mlflow.db").exists()


def test_an_unknown_key_is_refused_before_any_work(tmp_path):
    done = voxlift(tmp_path, "demo", "--set", "training.step=3", "--json")
    assert done.returncode == 2
    assert "Did you mean training.steps?" in done.stderr
    assert "training.steps" in json.loads(done.stdout)["error"]
