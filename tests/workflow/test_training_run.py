"""voxlift train and voxlift evaluate in small: real Ray, real MLflow, a killed process."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest
from mlflow import MlflowClient
from rich.console import Console
from scipy.ndimage import gaussian_filter

from configs.degradation import named_degradation
from configs.errors import InputError
from configs.schema import Resources
from tasks.artifacts.network_file import read_network
from tasks.files.lock import locked
from tests.tasks.small_training import SMALL
from tests.workflow.test_demo import ROOT, voxlift
from workflow.cli import app
from workflow.evaluate.evaluation import evaluate
from workflow.tracking.verification import verify
from workflow.train.run import LOCK


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A volume of odd sizes, oblique axes and uneven spacing."""
    blobs = gaussian_filter(np.random.default_rng(0).normal(size=(37, 60, 41)), 2) > 0
    image = nibabel.Nifti1Image((blobs * 900 + 100.5).astype(np.float32), np.diag([0.9, 1.1, 1.2, 1]))
    path = tmp_path_factory.mktemp("data") / "brain.nii.gz"
    nibabel.save(image, path)
    return path


@pytest.fixture(scope="module")
def mask(tmp_path_factory, reference):
    """The front half of the reference."""
    image = nibabel.load(reference)
    part = np.zeros(image.shape, np.uint8)
    part[:, 30:] = 1
    path = tmp_path_factory.mktemp("mask") / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(part, image.affine), path)
    return path


def settings(reference, *more):
    rules = (*SMALL, f"data.volumes=[{reference}]", "data.held_out=null", *more)
    return [argument for rule in rules for argument in ("--set", rule)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, reference):
    folder = tmp_path_factory.mktemp("train")
    ran = voxlift(folder, "train", "demo", "--out", "run", "--json", *settings(reference, "training.steps=6"))
    assert ran.returncode == 0, ran.stderr[-2000:]
    return folder, json.loads(ran.stdout)


def test_training_leaves_model_configuration_and_run(trained):
    folder, report = trained
    assert report["steps"] == 6
    assert report["replicas"] == 1
    assert 0 <= report["waiting_share"] < 1
    assert sorted(path.name for path in (folder / "run").iterdir()) == [
        "checkpoints",
        "config.yaml",
        "model.keras",
        "run.json",
    ]
    client = MlflowClient(report["mlflow"]["tracking_uri"])
    run = client.get_run(report["mlflow"]["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["data.volumes"] == "['not-recorded.nii.gz']"
    curve = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in curve] == [1, 2, 3, 4, 5, 6]
    assert client.get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"] == "custom_model_development"
    (registered,) = client.search_registered_models()
    assert f"models:/{registered.name}@champion" in registered.description
    assert registered.latest_versions[0].description == "Trained for iso2x."


def test_a_finished_training_is_neither_repeated_nor_harmed(trained, reference, monkeypatch):
    folder, report = trained
    monkeypatch.chdir(folder)
    client, run_id = MlflowClient(report["mlflow"]["tracking_uri"]), report["mlflow"]["run_id"]

    def state():
        return client.get_run(run_id).info, {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}

    before = state()
    for options, message in {
        (): "Continue that one with --resume, replace it with --overwrite",
        ("--resume", "--overwrite"): "not both",
        ("--resume", "--set", "training.learning_rate=1e-9"): "written with another configuration",
    }.items():
        arguments = ("train", "demo", "--out", "run", *settings(reference, "training.steps=6"), *options)
        with pytest.raises(InputError, match=message):
            app([*arguments], standalone_mode=False)
        assert str(state()) == str(before)
    # As a start that was stopped before its first checkpoint leaves it.
    started = folder / "started"
    started.mkdir()
    shutil.copy(folder / "run" / "config.yaml", started)
    with pytest.raises(InputError, match="Cannot resume the run in started: it was started with another"):
        app([*arguments, "--out", "started"], standalone_mode=False)
    assert [path.name for path in started.iterdir()] == ["config.yaml"]
    with locked(folder / "run" / LOCK, "it"), pytest.raises(InputError, match="another run writes it"):
        app([*arguments], standalone_mode=False)
    assert str(state()) == str(before)


@pytest.mark.usefixtures("ray_cluster")
def test_a_finished_training_that_is_resumed_registers_nothing_anew(trained, reference, monkeypatch, capfd):
    folder, report = trained
    monkeypatch.chdir(folder)
    client, run_id = MlflowClient(report["mlflow"]["tracking_uri"]), report["mlflow"]["run_id"]
    model, run = (folder / "run" / "model.keras").read_bytes(), client.get_run(run_id)
    options = settings(reference, "training.steps=6")
    app(["train", "demo", "--out", "run", "--json", "--resume", *options], standalone_mode=False)
    again = json.loads(capfd.readouterr().out)
    assert again["mlflow"] == report["mlflow"]
    assert (folder / "run" / "model.keras").read_bytes() == model
    after = client.get_run(run_id)
    assert (after.info.status, after.info.end_time) == ("FINISHED", run.info.end_time)
    assert after.data.tags["mlflow.note.content"] == run.data.tags["mlflow.note.content"]
    assert len(after.outputs.model_outputs) == 1
    (registered,) = client.search_registered_models()
    assert (registered.latest_versions[0].version, registered.aliases) == (1, {"champion": 1})


def test_a_model_is_evaluated_next_to_interpolation(trained, reference, mask):
    folder, training = trained
    options = ("--model", "run", "--degradation", "iso2x", "--mask", str(mask), "--json")
    ran = voxlift(folder, "evaluate", str(reference), *options)
    assert ran.returncode == 0, ran.stderr[-2000:]
    report = json.loads(ran.stdout)
    (volume,) = report["volumes"]
    assert Path(volume["reference"]).name == "brain.nii.gz"
    for measure in ("psnr", "ssim", "nmse"):
        assert set(volume[measure]) == {"restored", "corrected", "cubic", "trilinear"}
        assert report["overall"][measure] == pytest.approx(volume[measure])
    psnr = volume["psnr"]
    assert psnr["restored"] > psnr["cubic"] > psnr["trilinear"]
    assert psnr["corrected"] > psnr["cubic"]
    assert volume["gain"] == report["overall"]["gain"] == pytest.approx(psnr["restored"] - psnr["corrected"])
    assert volume["consistency"] < 2e-4 < volume["consistency_before"]
    assert volume["warnings"] == []

    recipe = named_degradation("iso2x")
    assert report["recipe"] == recipe.model_dump()
    client = MlflowClient(training["mlflow"]["tracking_uri"])
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, "tags.command = 'evaluate'")
    assert run.data.params["degradation.depth.blur_fwhm"] == str(recipe.depth.blur_fwhm)
    assert run.data.params["model.sha256"] == read_network(folder / "run" / "model.keras").digest
    assert run.data.metrics["psnr/gain"] == volume["gain"]
    assert run.data.metrics["psnr/corrected"] == psnr["corrected"]
    # With the model that the run of the training has logged, whichever name the command knew it by.
    (model,) = client.get_run(training["mlflow"]["run_id"]).outputs.model_outputs
    used = client.get_run(run.info.run_id).inputs.model_inputs
    assert [one.model_id for one in used] == [model.model_id]
    shown = {metric.key: metric.value for metric in client.get_logged_model(model.model_id).metrics}
    assert shown["psnr/gain"] == volume["gain"]
    assert {name: shown[f"psnr/{name}"] for name in psnr} == psnr
    assert shown["model/parameters"] == training["parameters"]
    note = run.data.tags["mlflow.note.content"]
    assert f"{volume['gain']:+.2f} dB PSNR over the best baseline, cubic with correction." in note
    assert f"| restored | {psnr['restored']:.2f} |" in note
    assert f"| cubic with correction | {psnr['corrected']:.2f} |" in note
    kept = [entry.path for entry in client.list_artifacts(run.info.run_id)]
    assert sorted(kept) == ["contracts.json", "environment.json", "model_card.md", "pictures", "quality"]
    (page,) = client.list_artifacts(run.info.run_id, "quality")
    content = Path(client.download_artifacts(run.info.run_id, page.path)).read_text()
    assert "37 × 60 × 41" in content
    assert "PSNR [dB], part that was scored" in content
    assert "brain.nii" not in content


@pytest.mark.slow
def test_the_shipped_weights_are_scored_with_an_input_that_the_degradation_explains(tmp_path, reference):
    gains = {}
    for degradation in ("kspace2x", "iso2x"):
        ran = voxlift(tmp_path, "evaluate", str(reference), "--degradation", degradation, "--json")
        assert ran.returncode == 0, ran.stderr[-2000:]
        psnr = json.loads(ran.stdout)["overall"]["psnr"]
        gains[degradation] = psnr["restored"] - psnr["cubic"]
    assert gains["kspace2x"] > 0.5
    assert gains["iso2x"] > 3.2  # 2.8 dB where the network reads the interpolated volume


def test_a_budget_that_is_too_small_names_the_option(trained, reference):
    folder, _ = trained
    options = ("--model", "run", "--degradation", "iso2x", "--memory-budget", "1")
    ran = voxlift(folder, "evaluate", str(reference), *options)
    assert ran.returncode == 2
    assert re.search(r"holds no shard .* Raise --memory-budget to \d+ or more\.", ran.stderr)


def test_a_mask_that_lies_elsewhere_is_refused(trained, reference, mask):
    folder, _ = trained
    image = nibabel.load(mask)
    others = {
        "lie up to 9 mm from those of the reference": (image.get_fdata(), image.affine + 9 * np.eye(4, k=3)),
        r"has \(37, 60, 40\) voxels and the reference \(37, 60, 41\)": (image.get_fdata()[..., 1:], image.affine),
    }
    for message, (voxels, affine) in others.items():
        nibabel.save(nibabel.Nifti1Image(voxels.astype(np.uint8), affine), folder / "other.nii.gz")
        network, recipe = read_network(folder / "run" / "model.keras"), named_degradation("iso2x")
        with pytest.raises(InputError, match=message):
            evaluate([reference], network, recipe, Resources(), folder / "other.nii.gz", Console(quiet=True))


def test_self_supervision_asks_for_a_scan(tmp_path):
    ran = voxlift(tmp_path, "train", "self4x")
    assert ran.returncode == 2
    assert "no volume is named" in ran.stderr
    assert ran.stderr.count("\n") == 1


def lose_power(process):
    """End a process and all below it at once, as when a machine goes down."""
    for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def orphan(process):
    """Kill the driver alone, whose worker trains on until Ray ends it."""
    process.kill()
    process.wait()


def warn(process):
    """Send what a batch system sends before it ends a job."""
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM


def interrupt(process):
    """Press Ctrl-C."""
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 128 + signal.SIGINT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "status"), [(lose_power, "RUNNING"), (orphan, "RUNNING"), (warn, "KILLED"), (interrupt, "KILLED")]
)
def test_a_stopped_training_goes_on_in_the_same_run_to_the_same_bits(tmp_path, reference, monkeypatch, stop, status):
    validated = (f"data.validation=[{reference}]", "training.early_stopping={every: 5, patience: 100}")
    rules = settings(reference, "training.steps=200", "training.checkpoints.every=20", *validated)
    whole = voxlift(tmp_path, "train", "demo", "--out", "whole", "--json", *rules)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "workflow", "train", "demo", "--out", "broken", "--json", *rules]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=-3, stderr=-3) as first:
        deadline = time.monotonic() + 200
        while not list((tmp_path / "broken" / "checkpoints").glob("step-*.npz")) and time.monotonic() < deadline:
            assert first.poll() is None
            time.sleep(0.05)
        stop(first)
    address = json.loads((tmp_path / "broken" / "run.json").read_text())
    client = MlflowClient(address["tracking_uri"])
    assert client.get_run(address["run_id"]).info.status == status
    last = max(
        int(path.stem.removeprefix("step-")) for path in (tmp_path / "broken" / "checkpoints").glob("step-*.npz")
    )
    again = voxlift(tmp_path, "train", "demo", "--out", "broken", "--resume", "--json", *rules)
    assert again.returncode == 0, again.stderr[-2000:]
    one, other = json.loads(whole.stdout), json.loads(again.stdout)
    if stop is orphan:  # which works on until its lock is taken over
        assert 20 <= last <= other["resumed_from"] <= 200
    else:
        assert 20 <= other["resumed_from"] == last < 200
    assert other["final_loss"] == one["final_loss"]
    import keras

    for mine, theirs in zip(
        *(keras.saving.load_model(report["model"], compile=False).get_weights() for report in (one, other)), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert other["mlflow"]["run_id"] == address["run_id"]
    run = client.get_run(other["mlflow"]["run_id"])
    assert run.info.status == "FINISHED"
    steps = {
        name: [point.step for point in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics
    }
    assert all(len(set(found)) == len(found) for found in steps.values())
    assert sorted(steps["train/loss"]) == sorted(steps["train/learning_rate"]) == list(range(1, 201))
    assert sorted(steps["validation/psnr"]) == list(range(5, 201, 5))
    baselines = [run.data.metrics[f"validation/psnr_{name}"] for name in ("corrected", "cubic", "trilinear")]
    assert baselines == sorted(baselines, reverse=True)
    assert "| restored |" in run.data.tags["mlflow.note.content"]
    assert run.data.params["training.steps"] == "200"
    assert len(run.inputs.dataset_inputs) == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address["tracking_uri"])
    assert verify(run.info.run_id).damages == ()
    assert len(client.search_runs([client.get_run(other["mlflow"]["run_id"]).info.experiment_id])) == 2
