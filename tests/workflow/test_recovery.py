"""Real runs of the command, killed: workers, the driver, a node of a cluster. The output is the same, byte for byte."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from configs.axes import FileShape
from tasks.volume.grid import Grid
from tasks.volume.nifti import write_volume
from tests.networks import small_restorer
from tests.processes import alive, below, end, until
from tests.ray_nodes import ray_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]


class Job:
    """A model, a volume of many shards, and runs of the command on them."""

    def __init__(self, folder):
        self.folder = folder
        self.model, self.volume = folder / "small.keras", folder / "head.nii.gz"
        small_restorer(filters=6).save(self.model)
        voxels = np.random.default_rng(0).gamma(2.0, 300.0, size=(70, 80, 66)).astype(np.float32)
        write_volume(self.volume, voxels, Grid(FileShape(*voxels.shape), np.diag([-1.0, 1.2, 2.0, 1.0])), dtype="int16")
        self.whole = self.finish(self.start("whole", "--workers", "1"))

    def start(self, out, *options, environment=None):
        command = [sys.executable, "-m", "workflow", "upscale", str(self.volume), "--json", "--scale", "2,2,2"]
        command += [] if "--workers" in options else ["--workers", "2"]
        command += [
            "--model",
            str(self.model),
            "--out",
            str(self.folder / out),
            "--memory-budget",
            "150",  # slabs of one strip
            "--inferred",
            *options,
        ]
        store = {"MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / 'mlflow.db'}"}
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **store, **(environment or {})},
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def finish(self, process):
        reported, _ = process.communicate(timeout=600)
        assert process.returncode == 0, (self.folder / "log").read_text()
        return json.loads(reported)

    def runs(self):
        """The status of each run by its id."""
        client = MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("voxlift")
        return {run.info.run_id: run.info.status for run in client.search_runs([experiment.experiment_id])}

    def cores(self, out):
        return len(list((self.folder / out).glob(".voxlift/*/0/[!.]*.core")))

    def require_same(self, report, out):
        (one,), (other,) = self.whole["volumes"], report["volumes"]
        assert other["sha256"] == one["sha256"]
        for name in ("head_sr.nii.gz", "head_sr_inferred.nii.gz"):
            assert (self.folder / "whole" / name).read_bytes() == (self.folder / out / name).read_bytes()


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return Job(tmp_path_factory.mktemp("job"))


def workers_of(process):
    return [child for child in below(process) if child.name().startswith("ray::_Process")]


def test_two_and_three_workers_write_the_bytes_of_one(job):
    for workers in ("2", "3"):
        job.require_same(job.finish(job.start(workers, "--workers", workers)), workers)


def test_a_killed_worker_changes_nothing(job):
    process = job.start("worker")
    until(lambda: job.cores("worker") >= 2, process)
    workers_of(process)[0].kill()
    report = job.finish(process)
    job.require_same(report, "worker")
    assert report["volumes"][0]["retries"] <= 2


def test_a_warned_driver_ends_within_seconds_and_is_resumed(job):
    process = job.start("warned")
    until(lambda: job.cores("warned") >= 2, process)
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    said = (job.folder / "log").read_text().rpartition("Stopped. ")[2]
    assert re.match(
        r"0 of 1 volume\(s\) are finished, and \d+ shard\(s\) of the others are saved. Resume with:\n", said
    )
    assert f"  voxlift upscale {job.volume} --json --scale 2,2,2 " in said
    assert " --resume\n" in said
    assert not (job.folder / "warned" / "head_sr.nii.gz").exists()
    kept = job.cores("warned")
    report = job.finish(job.start("warned", "--resume"))
    job.require_same(report, "warned")
    assert report["volumes"][0]["shards_resumed"] == kept >= 2


@pytest.mark.parametrize("moment", ["first core", "half of them", "all but one"])
def test_a_killed_driver_is_resumed(job, moment):
    shards = job.whole["volumes"][0]["shards"]
    out = moment.replace(" ", "-")
    wanted = {"first core": 1, "half of them": shards // 2, "all but one": shards - 1}[moment]
    process = job.start(out)
    until(lambda: job.cores(out) >= wanted, process)
    family = below(process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = job.cores(out)
    assert not (job.folder / out / "head_sr.nii.gz").exists()
    until(lambda: not any(map(alive, family)))
    before = job.runs()

    volume = (report := job.finish(job.start(out, "--resume")))["volumes"][0]
    job.require_same(report, out)
    assert volume["shards_resumed"] == kept > 0
    left = {path.name for path in (job.folder / out).iterdir()}
    outputs = {"head_sr.nii.gz", "head_sr_inferred.nii.gz", "head_sr.json", "head_sr_quality.html"}
    assert left == {".voxlift", "contracts.json", *outputs}
    assert job.runs() == before | {report["mlflow"]["run_id"]: "FINISHED"}
    assert before[report["mlflow"]["run_id"]] == "RUNNING"


@pytest.fixture
def nodes(tmp_path):
    """A head without GPUs and two nodes with a logical GPU each."""
    with ray_nodes(tmp_path, "--num-cpus=1 --num-gpus=0", *["--num-cpus=1 --num-gpus=1"] * 2) as cluster:
        yield cluster


def test_a_killed_node_of_a_cluster_changes_nothing(job, nodes):
    _, first, second = nodes.processes
    options = ["--workers", "2", "--gpus-per-worker", "1"]
    process = job.start("node", *options, environment=nodes.environment)

    def busy(node):
        return [child for child in below(node) if "_Process" in child.name()]

    until(lambda: job.cores("node") >= 2 and busy(first) and busy(second), process)
    assert (len(busy(first)), len(busy(second))) == (1, 1)
    end(second)
    report = job.finish(process)
    job.require_same(report, "node")


def test_what_a_cluster_cannot_hold_is_refused(job, nodes):
    process = job.start("refused", "--workers", "3", "--gpus-per-worker", "1", environment=nodes.environment)
    reported, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert re.search(r"3 CPUs\b.*\b2 GPUs\b.* on 3 nodes, room for 2\.", json.loads(reported)["error"])
