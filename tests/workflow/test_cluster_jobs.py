"""Jobs on a real Ray cluster of three nodes, with tokens, its job server and a real MLflow server: as if run here."""

import json
import os
import re
import subprocess
from datetime import datetime
from types import SimpleNamespace

import pytest
import yaml
from mlflow import MlflowClient

from tests.processes import until
from tests.ray_nodes import BIN, ray_nodes, token_authentication
from tests.workflow.conftest import tracking_server
from tests.workflow.small_training_run import SmallTraining, require_same_weights
from tests.workflow.small_upscaling import ROOT, SmallUpscaling, digests, report_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 1500


class Jobs:
    """A cluster that takes jobs, seen from a client."""

    def __init__(self, cluster, store):
        self.environment = os.environ | cluster.environment
        self.client = MlflowClient(store.uri)

    def ray_job(self, *arguments, **environment):
        return subprocess.run(
            [BIN / "ray", "job", *arguments],
            cwd=ROOT,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )

    def submit(self, *command, options=()):
        runtime = ("--runtime-env", "configs/cluster/runtime-env.yaml", "--working-dir", ".")
        command = ("env", "VOXLIFT_COMMIT=0c4f110-dirty", "python", "-m", "workflow", *command)
        return self.ray_job("submit", *runtime, *options, "--", *command)

    def finished(self, *command):
        """Run a job to its end; returns its report."""
        done = self.submit(*command)
        assert done.returncode == 0, done.stdout
        return report_in(done.stdout)

    def stopped(self, name, condition, *command):
        """Run a job until a condition holds, then stop it; returns its log."""
        assert self.submit(*command, options=("--no-wait", "--submission-id", name)).returncode == 0

        until(condition)
        stop = self.ray_job("stop", name)
        assert stop.returncode == 0
        reported = re.findall(r"^(\d{4}-\S+ \S+)\t.*(?:Attempting to stop|was stopped)", stop.stdout, re.MULTILINE)
        began, ended = map(datetime.fromisoformat, reported)
        assert (ended - began).total_seconds() < 20
        assert "was stopped" in self.ray_job("status", name).stdout
        return self.ray_job("logs", name).stdout

    def last_run(self, experiment):
        found = self.client.get_experiment_by_name(experiment)
        return self.client.search_runs([found.experiment_id], order_by=["attributes.start_time DESC"])[0]

    def status(self, report):
        return self.client.get_run(report["mlflow"]["run_id"]).info.status


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """A head and two nodes with a logical GPU each: work that asks for a GPU is done away from the driver."""
    folder = tmp_path_factory.mktemp("cluster")
    with tracking_server(folder) as store:
        environment = token_authentication(folder) | {"MLFLOW_TRACKING_URI": store.uri}
        worker = "--num-cpus=1 --num-gpus=1"
        with ray_nodes(
            folder, "--num-cpus=1 --num-gpus=0", worker, worker, environment=environment, job_server=True
        ) as cluster:
            yield Jobs(cluster, store)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A training in small, done here."""
    work = SmallTraining(tmp_path_factory.mktemp("training"), STEPS).prepare()
    return SimpleNamespace(work=work, report=work.run_here())


@pytest.fixture(scope="module")
def upscaling(tmp_path_factory):
    """An upscaling of six volumes in small, done here."""
    work = SmallUpscaling(tmp_path_factory.mktemp("upscaling"), volumes=6, shape=(50, 60, 54)).prepare()
    return SimpleNamespace(work=work, digests=work.run_here("here", "--workers", "1"))


def test_a_submitted_training_is_that_of_this_machine(jobs, training):
    report = jobs.finished(*training.work.command("submitted"))
    require_same_weights(report, training.report)
    run = jobs.client.get_run(report["mlflow"]["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.source.git.commit"] == "0c4f110"
    assert len(jobs.client.get_metric_history(run.info.run_id, "train/loss")) == STEPS


def test_a_submitted_upscaling_is_that_of_this_machine(jobs, upscaling):
    """By a worker for each GPU of the cluster. TensorFlow sees none of them: the CPU does the work, and is named."""
    report = jobs.finished(*upscaling.work.command("submitted"))
    assert digests(report) == upscaling.digests
    assert (report["workers"], report["devices"]) == (2, ["CPU"])
    assert jobs.status(report) == "FINISHED"


def test_a_job_that_is_wrong_says_so_and_fails(jobs, upscaling):
    done = jobs.submit(*upscaling.work.command("refused", "--workers", "2", "--gpus-per-worker", "2"))
    assert done.returncode == 1
    assert "Cannot start 2 workers of 1 CPU" in report_in(done.stdout)["error"]
    assert "failed with exit code 2" in done.stdout


@pytest.mark.parametrize(("status", "known_as"), [(0, "SUCCEEDED"), (1, "FAILED"), (2, "STOPPED")])
def test_a_ray_job_of_kubernetes_repeats_no_wrong_input(jobs, status, known_as):
    """KubeRay's submitter puts the entrypoint into a script like this one; it repeats only jobs that are FAILED."""
    address, name = jobs.environment["RAY_API_SERVER_ADDRESS"], f"kubernetes-{status}"
    manifest = (ROOT / "configs" / "cluster" / "rayjob.yaml").read_text()
    job = yaml.safe_load(manifest.replace("http://127.0.0.1:8265 voxlift", f"{address} {name}"))["spec"]
    before, _, rest = re.split(r"(voxlift .*?);", job["entrypoint"], maxsplit=1)
    instead = {0: "voxlift --version", 1: "false", 2: "voxlift inspect /nowhere.nii.gz"}[status]
    script = f"ray job submit --address {address} --submission-id {name} --no-wait -- {before}{instead};{rest} ; "
    script += f"ray job logs --address {address} --follow {name}"
    path = f"{BIN}:{os.environ['PATH']}"
    submitter = subprocess.run(
        ["bash", "-ce", "--", script],
        env=jobs.environment | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert submitter.returncode == 0, submitter.stderr  # else the operator calls the submission itself failed
    assert known_as.lower() in jobs.ray_job("status", name).stdout.lower()


def test_who_does_not_know_the_token_gets_nothing(jobs):
    refused = jobs.ray_job("list", RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0
    assert re.search(r"\b401\b|Unauthorized", refused.stdout)


def test_a_stopped_training_goes_on_to_the_same_weights(jobs, training):
    out = training.work.folder / "stopped"

    def has_taken_steps():
        if not (out / "run.json").exists():
            return False
        run = jobs.client.get_run(json.loads((out / "run.json").read_text())["run_id"])
        return "train/loss" in run.data.metrics

    log = jobs.stopped("training", has_taken_steps, *training.work.command("stopped"))
    run_id = json.loads((out / "run.json").read_text())["run_id"]
    assert jobs.client.get_run(run_id).info.status == "KILLED", log
    (checkpoint,) = (out / "checkpoints").iterdir()
    report = jobs.finished(*training.work.command("stopped", "--resume"))
    assert f"step-{report['resumed_from']:08d}.npz" == checkpoint.name
    assert 0 < report["resumed_from"] < STEPS
    require_same_weights(report, training.report)
    assert report["mlflow"]["run_id"] == run_id
    assert jobs.status(report) == "FINISHED"
    curve = jobs.client.get_metric_history(run_id, "train/loss")
    assert sorted(point.step for point in curve) == list(range(1, STEPS + 1))


def test_a_stopped_upscaling_goes_on_to_the_same_bytes(jobs, upscaling):
    options = ("--workers", "2", "--gpus-per-worker", "1")
    work = upscaling.work
    jobs.stopped("upscaling", lambda: work.cores("stopped") >= 2, *work.command("stopped", *options))
    assert jobs.last_run("voxlift").info.status == "KILLED"
    kept, finished = work.cores("stopped"), work.outputs("stopped")
    # A finished volume keeps its output and no cores; which of the two the stop finds is a matter of moments.
    assert kept or finished
    report = jobs.finished(*work.command("stopped", *options), "--resume")
    assert digests(report) == upscaling.digests
    resumed = [one["shards_resumed"] for one in report["volumes"]]
    assert sum(resumed) >= kept
    assert [one["status"] for one in report["volumes"]].count("resumed") >= finished
    assert jobs.status(report) == "FINISHED"
