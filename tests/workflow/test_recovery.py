"""Real runs of the command, killed: workers, the driver, a node of a cluster. The output is the same, byte for byte."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tasks.geometry import Grid
from tasks.volumes import write_volume
from tests.networks import small_restorer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


class Job:
    """A model, a volume of many shards, and runs of the command on them."""

    def __init__(self, folder):
        self.folder = folder
        self.model, self.volume = folder / "small.keras", folder / "head.nii.gz"
        small_restorer(filters=6).save(self.model)
        voxels = np.random.default_rng(0).gamma(2.0, 300.0, size=(70, 80, 66)).astype(np.float32)
        write_volume(self.volume, voxels, Grid(voxels.shape, np.diag([-1.0, 1.2, 2.0, 1.0])), dtype="int16")
        self.whole = self.finish(self.start("whole", "--workers", "1"))

    def start(self, out, *options, environment=None):
        command = [sys.executable, "-m", "workflow", "upscale", str(self.volume), "--json", "--scale", "2,2,2"]
        command += ["--model", str(self.model), "--out", str(self.folder / out), "--memory-budget", "90", *options]
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
        told, _ = process.communicate(timeout=600)
        assert process.returncode == 0, (self.folder / "log").read_text()
        return json.loads(told)

    def cores(self, out):
        return len(list((self.folder / out).glob(".voxlift/*/0/[!.]*.core")))

    def require_same(self, report, out):
        (one,), (other,) = self.whole["volumes"], report["volumes"]
        assert other["sha256"] == one["sha256"]
        written = [(self.folder / folder / "head_sr.nii.gz").read_bytes() for folder in ("whole", out)]
        assert written[0] == written[1]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return Job(tmp_path_factory.mktemp("job"))


def until(condition, process=None):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, "ended too early"
        time.sleep(0.01)


def alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def workers_of(process):
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.name().startswith("ray::_Process")
    ]


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


@pytest.mark.parametrize("moment", ["first core", "half of them", "all but one"])
def test_a_killed_driver_is_resumed(job, moment):
    shards = job.whole["volumes"][0]["shards"]
    out = moment.replace(" ", "-")
    wanted = {"first core": 1, "half of them": shards // 2, "all but one": shards - 1}[moment]
    process = job.start(out)
    until(lambda: job.cores(out) >= wanted, process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = job.cores(out)
    assert not (job.folder / out / "head_sr.nii.gz").exists()
    until(lambda: not any(map(alive, family)))

    volume = (report := job.finish(job.start(out, "--resume")))["volumes"][0]
    job.require_same(report, out)
    assert volume["shards_resumed"] == kept > 0
    left = {path.name for path in (job.folder / out).iterdir()}
    assert left == {".voxlift", "head_sr.json", "head_sr.nii.gz"}


def ray_node(log, *options):
    """A node that has started; tried again where its ports were taken under its hands."""
    command = [str(BIN / "ray"), "start", "--block", "--disable-usage-stats", *options]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    for _ in range(3):
        with log.open("w") as out:
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, cwd=log.parent)
        until(lambda process=process: "Ray runtime started" in log.read_text() or process.poll() is not None)
        if process.poll() is None:
            return process
    raise AssertionError(log.read_text())


def end(process):
    """End a process and all below it."""
    if process.poll() is None:
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            child.kill()
    process.wait()


@pytest.fixture
def nodes(tmp_path, free_port):
    """A head without GPUs and two nodes with a logical GPU each."""
    address = f"127.0.0.1:{free_port}"
    options = ("--head", f"--port={free_port}", "--num-cpus=1", "--num-gpus=0", "--include-dashboard=0")
    started = [ray_node(tmp_path / "head.log", *options)]
    try:
        # One after the other: nodes of one machine that start together take each other's ports.
        for number in range(2):
            log = tmp_path / f"node-{number}.log"
            started.append(ray_node(log, f"--address={address}", "--num-cpus=1", "--num-gpus=1"))
        yield address, started[1:]
    finally:
        for process in reversed(started):
            end(process)


def test_a_killed_node_of_a_cluster_changes_nothing(job, nodes):
    address, (first, second) = nodes
    environment = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
    options = ["--workers", "2", "--gpus-per-worker", "1"]
    process = job.start("node", *options, environment=environment)

    def busy(node):
        return [child for child in psutil.Process(node.pid).children(recursive=True) if "_Process" in child.name()]

    until(lambda: job.cores("node") >= 2 and busy(first) and busy(second), process)
    assert (len(busy(first)), len(busy(second))) == (1, 1)
    end(second)
    report = job.finish(process)
    job.require_same(report, "node")


def test_what_a_cluster_cannot_hold_is_refused(job, nodes):
    address, _ = nodes
    environment = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
    process = job.start("refused", "--workers", "3", "--gpus-per-worker", "1", environment=environment)
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "3 CPUs and 2 GPUs on 3 nodes, room for 2" in json.loads(told)["error"]
