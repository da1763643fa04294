"""The door to MLflow against real stores, SQLite and a server: every run ends and resumes, models load back."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from mlflow import MlflowClient

import workflow.tracking as tracking
from configs.axes import FileShape, NetworkShape
from configs.errors import ContractError, InputError
from configs.load import load_config
from models.network.restorer import build_restorer
from models.stages.stage import Stage
from tasks.artifacts.contracts import ModelContract, volume_contract
from tasks.artifacts.model_card import add_card, make_card
from tasks.artifacts.network_file import read_network
from tasks.files.lock import locked
from tasks.volume.grid import Grid
from tasks.volume.nifti import write_volume
from workflow.tracking.provenance import record_setup
from workflow.tracking.verification import verify

ROOT = Path(__file__).parents[2]


@pytest.fixture
def client(store):
    return MlflowClient(tracking_uri=tracking.tracking_uri())


def steps(client, run_id, key):
    return [metric.step for metric in client.get_metric_history(run_id, key)]


def test_a_run_holds_what_was_recorded(store, client, tmp_path):
    (tmp_path / "curve.txt").write_text("falling")
    with tracking.recorded_run("things", "first", tags={"phase": "test"}) as recorder:
        recorder.parameters({"training.steps": "3"})
        for step in range(1, 1203):
            recorder.metrics({"loss": 1 / step}, step)
        recorder.artifact(tmp_path / "curve.txt", "curves")
        recorder.text("why", "why.txt")
        recorder.describe("# What\nwas done")
        with recorder.phase("waiting"):
            pass
    run = client.get_run(recorder.address.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"training.steps": "3"}
    assert steps(client, run.info.run_id, "loss") == list(range(1, 1203))
    assert {entry.path for entry in client.list_artifacts(run.info.run_id)} == {"curves", "why.txt", "contracts.json"}
    assert (store.local(run.info.artifact_uri) / "why.txt").read_text() == "why"
    assert store.artifacts in store.local(run.info.artifact_uri).parents
    assert run.data.tags["phase"] == "test"
    assert run.data.tags["mlflow.note.content"] == "# What\nwas done"
    assert {"seconds/waiting", "system/cpu_utilization_percentage"} <= set(run.data.metrics)


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_a_run_never_stays_running(client, error, status):
    with pytest.raises(error), tracking.recorded_run("things", "broken") as recorder:
        recorder.metrics({"loss": 1.0}, 1)
        raise error
    run = client.get_run(recorder.address.run_id)
    assert run.info.status == status
    assert run.data.metrics["loss"] == 1.0


def test_sigterm_ends_a_run_as_killed(client):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left, tracking.recorded_run("things", "terminated") as recorder:
        os.kill(os.getpid(), signal.SIGTERM)
    assert left.value.code == 128 + signal.SIGTERM
    assert client.get_run(recorder.address.run_id).info.status == "KILLED"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)], ids=["SIGTERM", "Ctrl-C"]
)
def test_a_run_that_is_being_ended_is_ended_first(client, monkeypatch, number, error):
    def interrupted(*given):
        os.kill(os.getpid(), number)
        return log_artifact(*given)

    log_artifact = MlflowClient.log_artifact
    with pytest.raises(error), tracking.recorded_run("things", "late") as recorder:
        monkeypatch.setattr(MlflowClient, "log_artifact", interrupted)
    run = client.get_run(recorder.address.run_id)
    assert run.info.status == "FINISHED"
    assert verify(run.info.run_id).damages == ()


def test_a_killed_run_that_is_resumed_keeps_its_contracts(client):
    script = (
        "import os\nfrom workflow.tracking import recorded_run\nwith recorded_run('things', 'killed') as r:\n"
        "    r.text('1', 'first.txt')\n    print(r.address.run_id, flush=True)\n    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    run_id = killed.stdout.strip()
    (said,) = verify(run_id).damages
    assert str(said) == "contracts.json: it is not complete: the run has not ended"
    with tracking.recorded_run("things", "killed", run_id) as recorder:
        assert recorder.holds("first.txt")
        assert not recorder.holds("second.txt")
        recorder.text("2", "second.txt")
    assert client.get_run(run_id).info.status == "FINISHED"
    found = verify(run_id)
    assert (found.artifacts, found.damages) == (2, ())


def test_a_resumed_run_logs_no_step_twice(client, tmp_path):
    with pytest.raises(RuntimeError), tracking.recorded_run("things", "long") as first:
        first.text("1", "first.txt")
        for step in range(1, 6):
            first.metrics({"loss": 1 / step}, step)
        raise RuntimeError
    run_id = first.address.run_id
    with tracking.recorded_run("things", "long", run_id) as second:
        assert client.get_run(run_id).info.status == "RUNNING"
        second.text("2", "second.txt")
        for step in range(3, 9):
            second.metrics({"loss": 1 / step}, step)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert steps(client, run_id, "loss") == list(range(1, 9))
    system = steps(client, run_id, "system/cpu_utilization_percentage")
    assert len(system) == len(set(system)) >= 2
    client.download_artifacts(run_id, "contracts.json", str(tmp_path))
    assert set(json.loads((tmp_path / "contracts.json").read_text())["seals"]) == {"first.txt", "second.txt"}


def test_a_run_whose_process_was_killed_is_ended_by_the_next_start(client):
    script = (
        "import os\nfrom workflow.tracking import recorded_run\nwith recorded_run('things', 'evaluate') as r:\n"
        "    print(r.address.run_id, flush=True)\n    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    run_id = killed.stdout.strip()
    elsewhere = client.create_run(client.get_run(run_id).info.experiment_id)  # of a process that nothing is known of
    assert client.get_run(run_id).info.status == "RUNNING"
    with tracking.recorded_run("things", "outer") as outer, tracking.recorded_run("things", "inner"):
        assert client.get_run(run_id).info.status == "KILLED"
        assert client.get_run(outer.address.run_id).info.status == "RUNNING"
    assert client.get_run(elsewhere.info.run_id).info.status == "RUNNING"
    client.set_terminated(elsewhere.info.run_id)


def test_a_run_whose_process_was_killed_before_it_noted_the_id_is_resumed(client, tmp_path):
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom tasks.files.lock import locked\n"
        "from workflow.tracking import recorded_run\n"
        "with locked(Path(sys.argv[1]), 'it'), recorded_run('things', 'other'), recorded_run('things', 'lost') as r:\n"
        "    print(r.address.run_id, flush=True)\n    os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run.lock")]
    run_id = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    with locked(tmp_path / "run.lock", "it") as lock:
        assert lock.killed is not None
        with tracking.recorded_run("things", "lost", killed=lock.killed) as recorder:
            assert recorder.address.run_id == run_id
            assert client.get_run(run_id).info.status == "RUNNING"
    assert client.get_run(run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("error", "before", "after"),
    [
        (InputError, "FINISHED", "FINISHED"),
        (InputError, "FAILED", "FAILED"),
        (RuntimeError, "FINISHED", "FINISHED"),
        (KeyboardInterrupt, "FINISHED", "FINISHED"),
        (KeyboardInterrupt, "FAILED", "KILLED"),
    ],
)
def test_resuming_a_run_that_has_ended_does_not_harm_it(client, error, before, after):
    with tracking.recorded_run("things", "ended") as recorder:
        pass
    run_id = recorder.address.run_id
    client.set_terminated(run_id, before, end_time=client.get_run(run_id).info.start_time + 1)
    ended = client.get_run(run_id).info
    with pytest.raises(error), tracking.recorded_run("things", "ended", run_id):
        raise error("no")
    info = client.get_run(run_id).info
    assert info.status == after
    assert (info.end_time == ended.end_time) is (before == after)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"run_id": "7"}'])
def test_an_address_that_names_no_run_is_refused(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"Cannot read run\.json: it does not name the run") as refused:
        tracking.RunAddress.read(tmp_path / "run.json")
    assert str(tmp_path / "run.json") in refused.value.remedy


def test_a_run_that_was_deleted_gives_way_to_a_new_one(client):
    with tracking.recorded_run("things", "deleted") as first:
        pass
    client.delete_run(first.address.run_id)
    for gone in (first.address.run_id, "0" * 32):
        with tracking.recorded_run("things", "again", gone) as second:
            assert second.address.run_id != gone
        assert client.get_run(second.address.run_id).info.status == "FINISHED"


def test_the_contracts_of_artifacts_that_belong_together_are_logged_once(client, monkeypatch):
    logged, log_artifact = [], MlflowClient.log_artifact

    def counted(self, run_id, path, folder=None):
        logged.append(Path(path).name)
        log_artifact(self, run_id, path, folder)

    monkeypatch.setattr(MlflowClient, "log_artifact", counted)
    with tracking.recorded_run("things", "together") as recorder:
        with recorder.together():
            recorder.text("1", "first.txt")
            recorder.text("2", "second.txt")
        assert logged == ["first.txt", "second.txt", "contracts.json"]
    assert verify(recorder.address.run_id).artifacts == 2


def test_inputs_are_known_by_digest_and_geometry_and_not_by_name(client, tmp_path):
    path = tmp_path / "jane_doe.nii.gz"
    write_volume(path, np.ones((3, 4, 5), np.float32), Grid(FileShape(3, 4, 5), np.diag([1, 1, 2.5, 1])))
    with tracking.recorded_run("things", "inputs") as recorder:
        recorder.inputs([tracking.input_volume(path, "reference", record_paths=False)])
    (found,) = client.get_run(recorder.address.run_id).inputs.dataset_inputs
    assert json.loads(found.dataset.profile)["spacing"] == [1.0, 1.0, 2.5]
    assert json.loads(found.dataset.source)["sha256"].startswith(found.dataset.digest)
    assert [tag.value for tag in found.tags] == ["reference"]
    assert "jane" not in str(found.to_dictionary())
    assert str(path) in str(tracking.input_volume(path, "reference", record_paths=True))


@pytest.mark.parametrize("allowed", [False, True])
def test_paths_are_recorded_only_if_they_may(client, tmp_path, allowed):
    config = load_config("demo", ["data.volumes=[home/jane/head.nii.gz]", f"tracking.record_paths={allowed}"])
    with tracking.recorded_run("things", "setup") as recorder:
        record_setup(recorder, config, "train")
    run = client.get_run(recorder.address.run_id)
    kept = Path(client.download_artifacts(run.info.run_id, "config.yaml", str(tmp_path))).read_text()
    for reported in (kept, str(run.data.to_dictionary())):
        assert ("home/jane/head.nii.gz" in reported) is allowed
        assert ("not-recorded.nii.gz" in reported) is not allowed
    environment = Path(client.download_artifacts(run.info.run_id, "environment.json", str(tmp_path))).read_text()
    assert {"code", "versions", "hardware"} == set(json.loads(environment))
    assert {"code.dirty", "hardware.cpu", "seed", "degradation"} <= set(run.data.tags)


def test_a_volume_that_violates_its_grid_fails_the_run(client, tmp_path):
    path = tmp_path / "restored.nii.gz"
    write_volume(path, np.ones((3, 4, 5), np.float32), Grid(FileShape(3, 4, 5), np.eye(4)))
    output_contract = volume_contract(Grid(FileShape(3, 4, 6), np.eye(4)), "float32")
    with pytest.raises(ContractError, match="k must be 6, received 5"), tracking.recorded_run("things", "bad") as r:
        r.artifact(path, "volumes", output_contract)
    run = client.get_run(r.address.run_id)
    assert run.info.status == "FAILED"
    assert [entry.path for entry in client.list_artifacts(run.info.run_id)] == ["contracts.json"]


def test_a_deleted_experiment_is_reported(client):
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(InputError, match="was deleted"), tracking.recorded_run("gone", "first"):
        pass


@pytest.fixture(params=["known", "new"])
def crowded(request, store, tmp_path, monkeypatch):
    """A client of a store that holds runs already, and of one that has not even tables; no experiment in either."""
    if request.param == "new":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new.db")
    return lambda: MlflowClient(tracking_uri=tracking.tracking_uri())


@pytest.mark.slow
def test_four_processes_record_at_once_and_lose_nothing(crowded, tmp_path):
    script = (
        "import sys\nfrom pathlib import Path\nfrom workflow.tracking import input_volume, recorded_run\n"
        "given = [input_volume(Path(sys.argv[2]), 'training', record_paths=False)]\n"
        "with recorded_run('crowd', sys.argv[1]) as r:\n    r.inputs(given)\n"
        "    for step in range(1, 301): r.metrics({'loss': step * float(sys.argv[1]), 'other': 1.0}, step)\n"
        "    r.text(sys.argv[1], 'who.txt')\n    print(r.address.run_id)\n"
    )
    write_volume(tmp_path / "all.nii", np.ones((4, 4, 4), np.float32), Grid(FileShape(4, 4, 4), np.eye(4)))
    start = [[sys.executable, "-c", script, str(number), str(tmp_path / "all.nii")] for number in range(1, 5)]
    processes = [subprocess.Popen(one, cwd=ROOT, stdout=subprocess.PIPE, text=True) for one in start]
    run_ids = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    client = crowded()
    for number, run_id in enumerate(run_ids, start=1):
        losses = client.get_metric_history(run_id, "loss")
        assert {metric.step: metric.value for metric in losses} == {step: step * number for step in range(1, 301)}
        assert len(losses) == len(client.get_metric_history(run_id, "other")) == 300
        assert client.get_run(run_id).info.status == "FINISHED"
        assert verify(run_id).damages == ()


def test_a_store_that_is_not_there_is_reported(monkeypatch, free_port):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    with pytest.raises(InputError, match="Start the server"), tracking.recorded_run("things", "first"):
        pass


@pytest.mark.parametrize("uri", ["sqlite:////proc/none/runs.db", f"sqlite:///{__file__}", "https://jane:secret@[::1"])
def test_a_store_that_cannot_be_opened_is_reported(monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match="Cannot record in") as reported, tracking.recorded_run("things", "first"):
        pass
    assert "secret" not in str(reported.value)


@pytest.fixture(scope="module")
def restorer(tmp_path_factory):
    network = build_restorer((Stage(2, (4, 4, 4), (2, 2, 2)), Stage(1, (3, 4, 4), (1, 2, 2))), latent_filters=2)
    path = tmp_path_factory.mktemp("model") / "restorer.keras"
    network.save(path)
    add_card(path, make_card(load_config("demo"), 7, 3, 1, None))
    return network, path


@pytest.fixture(scope="module")
def logged(store, restorer):
    with tracking.recorded_run("things", "model") as recorder:
        contract = ModelContract(total_stride=(2, 4, 4))
        (uri,) = tracking.logged_model(
            recorder.address, restorer[1], [NetworkShape(2, 4, 4), NetworkShape(4, 8, 4)], contract
        )
    return recorder.address.run_id, uri


def test_a_logged_model_answers_in_the_shape_of_its_signature(logged, restorer):
    import mlflow

    volume = np.random.default_rng(0).random((1, 2, 8, 4, 1), np.float32)
    expected = restorer[0](volume)
    for uri in (logged[1], f"runs:/{logged[0]}/model"):
        loaded = mlflow.pyfunc.load_model(uri)
        np.testing.assert_array_equal(loaded.predict(volume), expected)
        assert loaded.metadata.signature.inputs.inputs[0].shape == (-1, -1, -1, -1, 1)
        assert loaded.metadata.signature.outputs.inputs[0].shape == (-1, -1, -1, -1, 1)
    np.testing.assert_array_equal(loaded.predict(loaded.input_example), restorer[0](loaded.input_example))
    with pytest.raises(ValueError, match="multiples of the network's total stride") as refused:
        loaded.predict(volume[:, :1] + 0.125)
    assert "0." not in str(refused.value)
    np.testing.assert_array_equal(mlflow.keras.load_model(logged[1])(volume), expected)


def test_no_pickle_is_needed_to_load_a_model(logged, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    folder = tracking.resolve_model(logged[1]).parents[1]
    assert not [path for path in folder.rglob("*") if path.suffix in {".pkl", ".pickle", ".joblib"}]
    for load in (mlflow.pyfunc.load_model, mlflow.keras.load_model):
        assert load(str(folder)) is not None


def test_a_logged_model_brings_its_card(logged):
    card = (tracking.resolve_model(logged[1]).parents[1] / "README.md").read_text()
    assert "| degradation | iso2x: depth 2x (box, blur 2, gap 0), height 2x" in card
    assert "| training | 3 steps, seed 0 |" in card


def test_scores_of_another_run_are_shown_with_the_model_that_it_uses(client, logged, restorer):
    with tracking.recorded_run("elsewhere", "scores") as recorder:
        recorder.uses(read_network(restorer[1]).digest)
        recorder.scores({"psnr/restored": 30.5})
        recorder.metrics({"seconds/evaluation": 2.0})
    run = client.get_run(recorder.address.run_id)
    model_id = logged[1].removeprefix("models:/")
    assert [used.model_id for used in run.inputs.model_inputs] == [model_id]
    assert [(one.key, one.value) for one in client.get_logged_model(model_id).metrics] == [("psnr/restored", 30.5)]
    with tracking.recorded_run("elsewhere", "of a network that was never logged") as recorder:
        recorder.uses("0" * 64)
        recorder.scores({"psnr/restored": 30.5})
    assert client.get_run(recorder.address.run_id).data.metrics["psnr/restored"] == 30.5
    kinds = {client.get_experiment_by_name(name).tags["mlflow.experimentKind"] for name in ("things", "elsewhere")}
    assert kinds == {"custom_model_development"}  # as MLflow's pages name the training of models


def test_a_resumed_run_logs_and_registers_the_same_network_once(client, logged, restorer, tmp_path):
    _, path = restorer
    again = tmp_path / "again.keras"
    # As an earlier version saved it in another process: Keras writes down the addresses of objects.
    with zipfile.ZipFile(path) as saved, zipfile.ZipFile(again, "w") as copy:
        for name in saved.namelist():
            data = saved.read(name)
            copy.writestr(name, data.replace(b'"shared_object_id": 1', b'"shared_object_id": 2'))
    assert again.read_bytes() != path.read_bytes()
    with tracking.recorded_run("things", "model", logged[0]) as recorder:
        address = recorder.address
        first = tracking.register_model(address, logged[1], "once")
        assert list(tracking.logged_model(address, again, [NetworkShape(2, 4, 4)])) == [logged[1]]
        second = tracking.register_model(address, logged[1], "once")
    assert second == first
    assert "models:/once@champion" in client.get_registered_model("once").description
    assert client.get_model_version("once", "1").description == "Trained for an unknown degradation."
    assert (first.version, first.alias) == ("1", "champion")
    assert len(client.get_run(logged[0]).outputs.model_outputs) == 1


def test_a_model_is_registered_in_the_store_of_its_run(store, logged, monkeypatch, tmp_path):
    address = tracking.RunAddress(tracking.tracking_uri(), "things", logged[0])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    first, second = (tracking.register_model(address, logged[1], "there") for _ in range(2))
    assert second == first
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    assert tracking.resolve_model("models:/there@champion").is_file()
    assert not list(tmp_path.iterdir())


def test_every_name_of_a_model_leads_to_the_same_file(logged, restorer):
    folder = tracking.resolve_model(logged[1]).parents[1]
    for text in (logged[1], f"runs:/{logged[0]}/model", str(folder), str(restorer[1]), str(restorer[1].parent)):
        assert tracking.resolve_model(text).read_bytes() == restorer[1].read_bytes(), text


@pytest.mark.parametrize("text", ["models:/none@champion", "runs:/0123/model", "/no/such/model"])
def test_a_model_that_is_not_there_is_reported(store, text):
    with pytest.raises(InputError, match="Cannot load the model"):
        tracking.resolve_model(text)


def test_a_model_that_was_changed_is_not_loaded(logged, tmp_path):
    import shutil

    folder = shutil.copytree(tracking.resolve_model(logged[1]).parents[1], tmp_path / "model")
    file = folder / "data" / "model.keras"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"model\.keras differs from what was logged"):
        tracking.resolve_model(str(folder))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda x: keras.Model(x, keras.layers.Conv3D(1, 3)(x)), "its output has another depth than its input"),
        (lambda x: keras.Model(x, keras.layers.Conv3D(2, 1)(x)), "channels of its output must be 1, received 2"),
        (lambda x: keras.Model(x, keras.layers.Conv3D(1, 1, dtype="float16")(x)), "float32, received float16"),
    ],
)
def test_a_model_that_violates_its_signature_fails_the_run(client, tmp_path, network, message):
    given = keras.Input((None, None, None, 1))
    network(given).save(tmp_path / "departs.keras")
    with pytest.raises(ContractError, match=message), tracking.recorded_run("things", "bad") as r:
        list(tracking.logged_model(r.address, tmp_path / "departs.keras", [NetworkShape(4, 4, 4)]))
    run = client.get_run(r.address.run_id)
    assert run.info.status == "FAILED"
    assert not run.outputs or not run.outputs.model_outputs


def test_a_model_of_another_stage_table_is_refused(store, restorer):
    wrong = ModelContract(total_stride=(4, 4, 4))
    with pytest.raises(ContractError, match="depth must be 4, received 2"), tracking.recorded_run("things", "bad") as r:
        list(tracking.logged_model(r.address, restorer[1], [NetworkShape(4, 4, 4)], wrong))


@pytest.mark.slow
def test_the_sigterm_of_a_whole_process_leaves_no_run_running(store, client):
    """As a scheduler ends a job: the process waits, is terminated, and the run says so."""
    script = (
        "import sys, threading\nfrom workflow.tracking import recorded_run\n"
        "with recorded_run('things', 'job') as r:\n"
        "    print(r.address.run_id, flush=True)\n    threading.Event().wait(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        run_id = process.stdout.readline().strip()
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert client.get_run(run_id).info.status == "KILLED"
