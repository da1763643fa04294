"""The tracking store goes away: the work goes on, its record waits, and is whole once the store is back."""

import io
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from rich.console import Console
from scipy.ndimage import gaussian_filter

import workflow.tracking as tracking
from configs.axes import NetworkShape
from configs.errors import InputError
from tasks.artifacts.contracts import ModelContract
from tasks.artifacts.manifest import manifest_entry
from tests.conftest import unused_port
from tests.networks import small_restorer
from tests.processes import full_disk, until
from tests.tasks.small_training import SMALL
from tests.workflow.conftest import MLFLOW, answers
from workflow.tracking import RunAddress, sender, store
from workflow.tracking.verification import verify

ROOT = Path(__file__).parents[2]


class Outage:
    """A SQLite store in a folder, and recording into it from another."""

    def __init__(self, folder):
        self.database, self.work = folder / "store" / "runs.db", folder / "work"
        self.work.mkdir(exist_ok=True)
        self.uri = f"sqlite:///{self.database}"
        self.said = io.StringIO()

    @property
    def client(self):
        return MlflowClient(tracking_uri=self.uri)

    def recording(self, name="first", **given):
        return tracking.recorded_run("away", name, folder=self.work, console=Console(file=self.said), **given)

    def leave(self):
        """Take the store away, as an unmounted file system does."""
        self.database.parent.rename(self.database.parent.with_name("gone"))
        self.database.parent.write_text("nothing can be made here")

    def come_back(self):
        self.database.parent.unlink()
        self.database.parent.with_name("gone").rename(self.database.parent)

    @property
    def records(self):
        return list(self.work.rglob("record.jsonl"))

    def require_whole(self, run_id, steps, status="FINISHED"):
        run = self.client.get_run(run_id)
        assert run.info.status == status
        for key in ("loss", "other"):
            assert Counter(metric.step for metric in self.client.get_metric_history(run_id, key)) == Counter(steps)
        assert (run.data.params["given"], run.data.tags["tagged"]) == ("1", "2")
        assert verify(run_id).damages == ()
        assert not list(self.work.iterdir())
        return run


def record(recorder, steps):
    for step in steps:
        recorder.metrics({"loss": 1 / (step + 1), "other": float("nan")}, step)
        recorder.flush()


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A store without runs: making its tables takes seconds."""
    file = tmp_path_factory.mktemp("tables") / "runs.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def outage(tables, tmp_path, monkeypatch):
    made = Outage(tmp_path)
    made.database.parent.mkdir()
    shutil.copyfile(tables, made.database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.uri)
    monkeypatch.chdir(made.work)
    monkeypatch.setattr(sender, "PATIENCE_SECONDS", 0.2)
    return made


def test_a_locked_store_delays_no_work_and_lacks_nothing_afterwards(outage):
    with outage.recording() as recorder:
        record(recorder, range(3))
        with closing(sqlite3.connect(outage.database, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            record(recorder, range(3, 6))
            recorder.parameters({"given": "1"})
            recorder.tags({"tagged": "2"})
            recorder.text("why", "why.txt")
            assert outage.said.getvalue().count("Cannot record in the tracking store") == 1
            assert outage.records
            other.execute("ROLLBACK")
    outage.require_whole(recorder.address.run_id, range(6))
    assert "has the record so far" in outage.said.getvalue()


def fill(recorder):
    """Record one of everything, to what `require_whole` expects."""
    recorder.parameters({"given": "1"})
    recorder.tags({"tagged": "2"})
    recorder.text("why", "why.txt")


def test_what_a_store_lacks_at_the_end_is_uploaded_once(outage, voxlift, tmp_path):
    with outage.recording() as recorder:
        record(recorder, range(3))
        outage.leave()
        record(recorder, range(3, 6))
        fill(recorder)
    run_id = recorder.address.run_id
    said = outage.said.getvalue()
    assert said.count("Cannot record in the tracking store") == 1
    assert f"The record of the run {run_id} is not complete in the tracking store {outage.uri}" in said
    assert f"\n  voxlift sync {outage.work}\n" in said
    status, out, _ = voxlift("sync", "--json")  # still away
    (waiting,) = json.loads(out)["waiting"]
    assert (status, Path(waiting["folder"]).parents[2]) == (1, outage.work)
    outage.come_back()
    assert outage.client.get_run(run_id).info.status == "RUNNING"
    ended = json.loads(outage.records[0].read_text().splitlines()[-1])
    status, out, _ = voxlift("sync", str(tmp_path), "--json")
    (uploaded,) = json.loads(out)["uploaded"]
    assert (status, uploaded["run_id"], json.loads(out)["waiting"]) == (0, run_id, [])
    run = outage.require_whole(run_id, range(6))
    assert run.info.end_time == ended["end_time"]
    assert all(metric.timestamp <= run.info.end_time for metric in outage.client.get_metric_history(run_id, "loss"))
    status, out, _ = voxlift("sync", str(outage.work))
    assert (status, out.splitlines()[-1]) == (0, "There is nothing to upload.")


def test_a_record_that_was_uploaded_in_part_is_uploaded_without_doubles(outage, voxlift, monkeypatch):
    with outage.recording() as recorder:
        outage.leave()
        record(recorder, range(4))
        fill(recorder)
    outage.come_back()
    # The server takes an entry, and the connection is lost before it has answered.
    set_terminated = MlflowClient.set_terminated
    monkeypatch.setattr(MlflowClient, "set_terminated", lambda *given: set_terminated(*given) or 1 / 0)
    status, _, err = voxlift("sync")
    assert (status, len(outage.records)) == (1, 1), err
    assert "waits on: Cannot upload the record: division by zero. Try again." in err
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", outage.uri)
    assert voxlift("sync", str(outage.work))[0] == 0
    outage.require_whole(recorder.address.run_id, range(4))


KILLED = """
import os, sys
from pathlib import Path
from tests.workflow.test_store_outages import Outage, fill, record
outage = Outage(Path(sys.argv[1]))
with outage.recording() as recorder:
    print(recorder.address.run_id, flush=True)
    record(recorder, range(3))
    outage.leave()
    record(recorder, range(3, 6))
    fill(recorder)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(
    "by", ["resuming it", *(pytest.param(by, marks=pytest.mark.slow) for by in ("sync", "the next start"))]
)
def test_the_record_of_a_process_that_was_killed_is_uploaded(outage, voxlift, tmp_path, by):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run_id = killed.stdout.strip()
    outage.come_back()
    with outage.records[0].open("ab") as file:
        file.write(b'{"kind":"batch","met')  # a line that was being written
    if by == "sync":
        assert voxlift("sync", str(outage.work))[0] == 0
    elif by == "the next start":
        with outage.recording("second"):
            assert outage.client.get_run(run_id).info.status == "KILLED"
    else:
        with outage.recording(run_id=run_id) as recorder:
            assert recorder.holds("why.txt")
            record(recorder, range(4, 8))
        outage.require_whole(run_id, range(8))
        return
    run = outage.client.get_run(run_id)
    assert (run.info.status, run.data.tags["tagged"]) == ("KILLED", "2")
    losses = outage.client.get_metric_history(run_id, "loss")
    assert [metric.step for metric in losses] == list(range(6))
    assert not list(outage.work.iterdir())


def test_the_record_of_a_run_that_goes_on_is_left_alone(outage, voxlift):
    with outage.recording() as recorder:
        outage.leave()
        record(recorder, range(4))
        fill(recorder)
        status, _, err = voxlift("sync", str(outage.work))
        assert status == 1
        assert f"process {os.getpid()} on" in err
        outage.come_back()
    outage.require_whole(recorder.address.run_id, range(4))


@pytest.mark.parametrize("room", [20_000, 0], ids=["for the record", "for nothing"])
def test_a_full_disk_stops_no_work(outage, room):
    with outage.recording() as recorder:
        record(recorder, range(3))
        recorder.text("why", "why.txt")
        with full_disk(room):
            record(recorder, range(3, 6))
            recorder.parameters({"given": "1"})
            recorder.tags({"tagged": "2"})
        assert outage.said.getvalue().count("Cannot record in the tracking store") == 1
    outage.require_whole(recorder.address.run_id, range(6))


def test_a_run_of_a_sweep_begins_without_the_store(outage, voxlift, monkeypatch):
    with outage.recording("sweep") as parent:
        outage.leave()
        note = outage.work / "1" / "run.json"
        note.parent.mkdir()
        with outage.recording("1: seed=0", parent=parent.address.run_id) as child:
            child.note_address(note)
            record(child, range(4))
            fill(child)
        assert not note.exists()
        outage.come_back()
    create_run = MlflowClient.create_run
    with monkeypatch.context() as patch:  # the run is made, and the connection is lost before the answer
        patch.setattr(MlflowClient, "create_run", lambda *given, **named: create_run(*given, **named) and 1 / 0)
        assert voxlift("sync", str(outage.work))[0] == 1
    assert voxlift("sync", str(outage.work))[0] == 0
    address = RunAddress.read(note)
    assert address is not None
    note.unlink()
    note.parent.rmdir()
    run = outage.require_whole(address.run_id, range(4))
    assert run.data.tags["mlflow.parentRunId"] == parent.address.run_id
    experiment = run.info.experiment_id
    assert len(outage.client.search_runs([experiment])) == 2


def test_a_run_that_was_deleted_meanwhile_does_not_stop_the_work(outage, voxlift):
    with outage.recording() as recorder:
        outage.client.delete_run(recorder.address.run_id)
        record(recorder, range(4))
        fill(recorder)
    assert outage.said.getvalue().count("Cannot record in the tracking store") == 1
    status, _, err = voxlift("sync", str(outage.work))
    assert status == 1
    assert "The tracking store refuses" in err
    assert "must be in the 'active' state" in err
    outage.client.restore_run(recorder.address.run_id)
    assert voxlift("sync", str(outage.work))[0] == 0
    outage.require_whole(recorder.address.run_id, range(4))


def test_other_than_the_store_is_not_uploaded(voxlift, tmp_path):
    assert voxlift("sync", str(tmp_path / "none"))[0] == 2
    record_file = tmp_path / ".voxlift" / "pending" / "one" / "record.jsonl"
    record_file.parent.mkdir(parents=True)
    record_file.write_text("{}")
    status, _, err = voxlift("sync", str(tmp_path))
    assert status == 1
    assert "it holds no record of a run" in err


def test_a_start_in_a_folder_that_cannot_be_written_is_refused_at_once(monkeypatch):
    def slept(seconds):
        raise AssertionError(f"slept {seconds} s")

    monkeypatch.setattr("mlflow.store.db.utils.time.sleep", slept)
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/runs.db")
        if user == 0:  # whom no mode keeps out
            os.seteuid(65534)
        try:
            with pytest.raises(InputError, match="unable to open database file"), tracking.recorded_run("away", "one"):
                pass
        finally:
            os.seteuid(user)


def test_a_start_with_a_server_that_does_not_answer_is_refused(monkeypatch):
    monkeypatch.setattr(store, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(InputError, match="Cannot record in"), tracking.recorded_run("away", "first"):
            pass


class Server:
    """A real server on a port and a database of its own, started as often as wanted."""

    def __init__(self, folder):
        self.folder, self.uri = folder, f"http://127.0.0.1:{unused_port()}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self):
        host, port = self.uri.removeprefix("http://").split(":")
        command = [*MLFLOW, "server", "--host", host, "--port", port, "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", f"{self.folder}/artifacts"]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)
        until(lambda: answers(f"{self.uri}/health"), self.process)

    def signal(self, number):
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self):
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "server").mkdir()
    made = Server(tmp_path / "server")
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_that_hangs_is_killed_and_restarted_has_the_whole_record(server, outage, monkeypatch, voxlift):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setattr(store, "ANSWER_SECONDS", 1.0)
    outage.uri = server.uri
    model = outage.work.parent / "model.keras"
    small_restorer().save(model)
    with outage.recording() as recorder:
        record(recorder, range(3))
        server.signal(signal.SIGSTOP)
        record(recorder, range(3, 6))
        fill(recorder)
        server.signal(signal.SIGCONT)
        until(lambda: not outage.records)
        record(recorder, range(6, 9))
        server.kill()
        record(recorder, range(9, 12))
        contract = ModelContract()
        assert recorder.model(model, manifest_entry(model, contract), NetworkShape(8, 16, 16)) == str(model)
        assert recorder.register("away") is None
    run_id = recorder.address.run_id
    with pytest.raises(InputError, match="Connection refused"), outage.recording("refused"):
        pass
    server.start()
    status, out, err = voxlift("sync", str(outage.work), "--json")
    assert status == 0, err
    assert [one["run_id"] for one in json.loads(out)["uploaded"]] == [run_id]
    run = outage.require_whole(run_id, range(12))
    assert len(run.outputs.model_outputs) == 1
    assert [version.run_id for version in outage.client.search_model_versions("name = 'away'")] == [run_id]
    assert tracking.resolve_model("models:/away@champion").read_bytes() == model.read_bytes()
    assert outage.said.getvalue().count("Cannot record in the tracking store") == 1


def training(folder):
    blobs = gaussian_filter(np.random.default_rng(0).normal(size=(37, 60, 41)), 2) > 0
    nibabel.save(nibabel.Nifti1Image((blobs * 900 + 100.5).astype(np.float32), np.eye(4)), folder / "here.nii.gz")
    tracked = {"experiment": "voxlift", "registered_model": "away"}
    content = {"degradation": "iso2x", "tracking": tracked, "sweep": {"training.seed": [0, 1]}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content))
    del content["sweep"]
    (folder / "train.yaml").write_text(yaml.safe_dump(content))
    rules = [*SMALL, "training.steps=6", "data.volumes=[here.nii.gz]", "data.validation=[here.nii.gz]"]
    return [word for rule in [*rules, "resources.workers=1"] for word in ("--set", rule)]


COMMANDS = {
    "train": ["train.yaml", "--out", "out"],
    "sweep": ["sweep.yaml", "--out", "out", "--parallel", "1"],
    "upscale": ["here.nii.gz", "--out", "out", "--scale", "2", "--workers", "1"],
    "evaluate": ["here.nii.gz", "--degradation", "iso2x", "--workers", "1"],
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_whose_store_goes_away_does_its_work(outage, command, voxlift):
    settings = training(outage.work)

    def start(*more):
        words = [*COMMANDS[command], *(settings if command in {"train", "sweep"} else []), *more]
        given = [sys.executable, "-m", "workflow", command, *words, "--json"]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        with (outage.work.parent / "log").open("a") as log:
            return subprocess.Popen(
                given, env=environment | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=log
            )

    def runs():
        with closing(sqlite3.connect(outage.database, timeout=60)) as database:
            return database.execute("SELECT count(*) FROM runs").fetchone()[0]

    process = start()
    # The first training of a sweep has a run, the second has none yet.
    until(lambda: runs() == 1 + (command == "sweep"), process)
    outage.leave()
    out, _ = process.communicate(timeout=400)
    said = (outage.work.parent / "log").read_text()
    assert process.returncode == 0, said
    assert said.count("Cannot record in the tracking store") == 1
    assert f"voxlift sync {outage.work}" in said
    outage.come_back()
    if command == "sweep":
        assert json.loads(out)["comparison"] is None
        assert "The trainings are not compared: the store lacks the records of 2 of them." in said
    status, _, err = voxlift("sync")
    assert status == 0, err
    if command == "sweep":
        again = start("--resume")
        out, _ = again.communicate(timeout=400)
        assert again.returncode == 0
        report = json.loads(out)
        assert [child["status"] for child in report["children"]] == ["kept", "kept"]
        assert len(report["comparison"]["rows"]) == 2
    assert not outage.records
    client = outage.client
    found = client.search_runs([client.get_experiment_by_name("voxlift").experiment_id])
    assert [run.info.status for run in found] == ["FINISHED"] * (3 if command == "sweep" else 1)
    for run in found:
        assert verify(run.info.run_id).damages == ()
        if run.info.run_name not in {"upscale", "evaluate"} and "validation/psnr_best" in run.data.metrics:
            losses = client.get_metric_history(run.info.run_id, "train/loss")
            assert [metric.step for metric in losses] == list(range(1, 7))
            assert len(run.outputs.model_outputs) == 1
    registered = client.search_model_versions("name = 'away'")
    assert len(registered) == (command in {"train", "sweep"})
