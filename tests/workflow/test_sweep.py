"""Many trainings: every combination, two at a time, a failure of one is its own, what has finished is kept."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from rich.console import Console
from scipy.ndimage import gaussian_filter

from configs.errors import ConfigError, UsageError
from configs.load import load_sweep
from tests.processes import until
from tests.tasks.small_training import SMALL
from workflow.cli import app
from workflow.train.sweep import all_trials, run_sweep

ROOT = Path(__file__).parents[2]


def test_every_combination_is_made_once():
    made = all_trials(
        {"training.seed": [0, 1], "network.activation": ["relu", "gelu"], "training.patch": [[8, 16, 16]]}
    )
    assert [trial.number for trial in made] == [1, 2, 3, 4]
    assert made[1].settings == ("training.seed=0", "network.activation=gelu", "training.patch=[8, 16, 16]")
    assert len({trial.settings for trial in made}) == 4


def test_ranges_step_by_differences_or_by_factors():
    def values(given):
        return [yaml.safe_load(trial.settings[0].partition("=")[2]) for trial in all_trials({"key": given})]

    assert values({"from": 0, "to": 10, "steps": 3}) == [0, 5, 10]
    assert values({"from": 0.1, "to": 0.2, "steps": 3}) == [0.1, 0.15, 0.2]
    assert values({"from": 0.001, "to": 0.1, "steps": 3, "log": True}) == [0.001, 0.01, 0.1]


@pytest.mark.parametrize(
    "given", [3, [], {"from": 1}, {"from": 0, "to": 1, "steps": 3, "log": True}, {"from": 0, "to": 1, "steps": 1}, "ab"]
)
def test_a_value_that_is_neither_list_nor_range_is_refused(given):
    with pytest.raises(ConfigError, match=r"Cannot sweep over training\.seed: give a list"):
        all_trials({"training.seed": given})


def test_a_configuration_without_a_sweep_is_refused():
    with pytest.raises(ConfigError, match="has no section sweep"):
        load_sweep("demo")
    with pytest.raises(ConfigError, match="more than 500"):
        all_trials({"a": list(range(30)), "b": list(range(30))})
    # Counted before they are made.
    with pytest.raises(ConfigError, match=f"{40**8} trainings are more than 500"):
        all_trials({f"key{n}": list(range(40)) for n in range(8)})
    with pytest.raises(ConfigError, match="2000000000 trainings are more than 500"):
        all_trials({"a": {"from": 0, "to": 1, "steps": 2_000_000_000}})


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"sweep": {"training.seed": [0, 1]}}, "no validation volume is named"),
        ({"sweep": {"degradation": ["iso2x", "box2x"]}, "data": {"held_out": {}}}, "by different degradations"),
        ({"sweep": {"data.validation": [["a.nii"], ["b.nii"]]}}, "on different volumes"),
        ({"sweep": {"data.held_out": [{"axis": 0}, {"axis": 1}]}}, "on different volumes"),
    ],
)
def test_trainings_that_cannot_be_ranked_are_refused_before_any_work(content, part, tmp_path):
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"degradation": "iso2x"} | content))
    with pytest.raises(ConfigError, match=f"Cannot rank the trainings of a sweep: .*{part}"):
        run_sweep(
            str(tmp_path / "sweep.yaml"), [], tmp_path / "out", parallel=1, resume=False, console=Console(quiet=True)
        )
    assert not (tmp_path / "out").exists()


def command(steps, *more):
    rules = (*SMALL, f"training.steps={steps}", "data.validation=[here.nii.gz]", "resources.workers=1")
    words = [word for rule in rules for word in ("--set", rule)]
    return [sys.executable, "-m", "workflow", "sweep", "sweep.yaml", "--out", "out", "--json", *words, *more]


def environment():
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}


def sweep(folder, steps, *more):
    return subprocess.run(
        command(steps, *more),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def prepared(folder, name, varied):
    blobs = gaussian_filter(np.random.default_rng(0).normal(size=(37, 60, 41)), 2) > 0
    image = nibabel.Nifti1Image((blobs * 900 + 100.5).astype(np.float32), np.eye(4))
    nibabel.save(image, folder / "here.nii.gz")
    content = {"degradation": "iso2x", "tracking": {"experiment": name, "registered_model": name}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content | {"sweep": varied}, sort_keys=False))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("{}", [], "Continue that one with --resume, replace it with --overwrite"),
        ("{}", ["--resume", "--overwrite"], "not both"),
        ("", ["--resume"], r"Cannot read out/sweep\.json: it does not name the trainings"),
        ('{"trials": [["training.seed=7"]]}', ["--resume"], "it varied something else"),
    ],
)
def test_a_sweep_is_not_replaced_unawares(tmp_path, monkeypatch, content, options, message):
    prepared(tmp_path, "kept", {"training.seed": [0, 1]})
    monkeypatch.chdir(tmp_path)
    known = tmp_path / "out" / "sweep.json"
    known.parent.mkdir()
    known.write_text(content)
    with pytest.raises(UsageError, match=message):
        app(["sweep", "sweep.yaml", "--out", "out", "--set", "data.held_out={}", *options], standalone_mode=False)
    assert [path.name for path in known.parent.iterdir()] == ["sweep.json"]
    assert known.read_text() == content


@pytest.fixture(scope="module")
def swept(store, tmp_path_factory):
    """A sweep of four trainings, one volume of which is not there until the sweep is resumed."""
    folder = tmp_path_factory.mktemp("sweep")
    prepared(folder, "swept", {"training.seed": [0, 1], "data.volumes": [["here.nii.gz"], ["late.nii.gz"]]})
    first = sweep(folder, 4)
    shutil.copy(folder / "here.nii.gz", folder / "late.nii.gz")
    # As version 0.1.0 left it: the run's id with the trials, and no address.
    trials_file, address = folder / "out" / "sweep.json", folder / "out" / "run.json"
    run_id = json.loads(address.read_text())["run_id"]
    trials_file.write_text(json.dumps(json.loads(trials_file.read_text()) | {"run_id": run_id}))
    address.unlink()
    return first, sweep(folder, 4, "--resume")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_failure_affects_one_training_and_resuming_runs_the_others(swept, store):
    first, second = swept
    assert first.returncode == 1, first.stderr[-3000:]
    before = json.loads(first.stdout)
    assert [child["status"] for child in before["children"]] == ["done", "failed", "done", "failed"]
    assert first.stderr.count("Cannot read late.nii.gz") >= 2
    assert second.returncode == 0, second.stderr[-3000:]
    after = json.loads(second.stdout)
    assert [child["status"] for child in after["children"]] == ["kept", "done", "kept", "done"]
    assert after["run_id"] == before["run_id"]
    assert after["comparison"]["differing"] == ["training.seed"]
    assert len(after["comparison"]["rows"]) == 4
    client = MlflowClient(store.uri)
    parent = client.get_run(after["run_id"])
    assert parent.info.status == "FINISHED"
    assert {entry.path for entry in client.list_artifacts(after["run_id"])} >= {"comparison", "contracts.json"}
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{after['run_id']}'", max_results=50
    )
    assert {child.info.run_id for child in children} == {child["run_id"] for child in after["children"]}
    for child in children:
        assert child.info.status == "FINISHED"
        assert "nii" not in child.info.run_name.replace("not-recorded.nii.gz", "")
        assert [point.step for point in client.get_metric_history(child.info.run_id, "train/loss")] == [1, 2, 3, 4]
    # The first start has registered its best already: if it is still the best, it stays what it is.
    registered = {version.run_id for version in client.search_model_versions("name = 'swept'")}
    assert parent.data.tags["best"] in registered
    scores = {child.info.run_id: child.data.metrics["validation/psnr_best"] for child in children}
    assert scores[parent.data.tags["best"]] == max(scores.values())  # equal files, equal scores: the first of them
    assert after["comparison"]["sorted_by"] == "validation/psnr_best"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_four_trainings_two_at_a_time_are_stopped_and_resumed(store, tmp_path, number):
    experiment = f"stopped {number.name}"
    prepared(tmp_path, experiment, {"training.seed": [0, 1, 2, 3], "data.volumes": [["here.nii.gz"]]})
    with subprocess.Popen(command(1500), cwd=tmp_path, env=environment(), stdout=-3, stderr=-3) as process:
        until(lambda: len(list(tmp_path.glob("out/*/run.json"))) == 2, process)
        until(lambda: list(tmp_path.glob("out/*/checkpoints/step-*.npz")), process)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    client = MlflowClient(store.uri)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert [run.info.status for run in runs] == ["KILLED"] * 3  # the parent and the two that had begun

    done = sweep(tmp_path, 1500, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert [child["status"] for child in report["children"]] == ["done"] * 4
    runs = client.search_runs([runs[0].info.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 5
    for child in report["children"]:
        history = client.get_metric_history(child["run_id"], "train/loss")
        assert sorted(point.step for point in history) == list(range(1, 1501))
    infos = {run.info.run_id: run.info for run in runs}
    first, second, third, _ = (infos[child["run_id"]] for child in report["children"])
    assert min(first.end_time, second.end_time) <= third.start_time
