"""Workers that are processes of this machine, in place of those of a cluster."""

import json
import os
import signal
import subprocess
import sys
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from configs.axes import FileShape, NetworkShape
from configs.errors import InputError
from configs.schema import Resources
from tasks.artifacts.network_file import read_network
from tasks.sharding.plan import plan_shards
from tasks.sharding.restore import CoarseVolume, Restorer
from tasks.volume.grid import Grid
from tasks.volume.intensity import Intensity
from tasks.volume.nifti import write_volume
from tests.doubler import Doubler
from tests.networks import small_restorer
from tests.processes import alive, below, end, until
from workflow.restore.processes import ProcessWorker, fetch, first_answers, process_restorers, spread
from workflow.restore.worker_pool import Job, WorkerPool

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.keras"
    small_restorer().save(path)
    return read_network(path)


@pytest.fixture(scope="module")
def jobs(network):
    voxels = np.random.default_rng(0).gamma(2.0, 300.0, (9, 20, 20)).astype(np.float32)
    coarse = CoarseVolume(voxels, NetworkShape(18, 40, 40), Intensity(0, 2000))
    (shard,) = plan_shards(coarse.target_shape, network.cost, 2000).shards
    return [Job(number, (coarse, shard)) for number in range(2)]


def worker_process():
    """The process of the only worker."""
    (found,) = [one for one in psutil.Process().children() if "workflow.restore.processes" in " ".join(one.cmdline())]
    return found


def test_a_process_restores_and_a_killed_one_is_replaced(network, jobs):
    expected = Restorer(network.name, network.content, None)(*jobs[0].arguments).voxels
    with process_restorers(network, Resources(workers=1, retries=1), 2) as pool:
        outcomes = pool.work(jobs)
        first = next(outcomes)
        worker_process().kill()
        second = next(outcomes)
        replaced = worker_process() if second.retries else None  # its answer may have been there
    assert [(one.key, one.error) for one in (first, second)] == [(0, None), (1, None)]
    assert second.retries <= 1
    assert np.array_equal(first.value.voxels, second.value.voxels)
    np.testing.assert_allclose(first.value.voxels, expected, rtol=1e-4, atol=0.1)
    assert replaced is None or not alive(replaced)


def test_a_network_that_cannot_be_loaded_is_refused(network, jobs):
    broken = replace(network, content=network.content[:100])
    with (
        process_restorers(broken, Resources(), 2) as pool,
        pytest.raises(InputError, match=r"Cannot load the model small\.keras"),
    ):
        list(pool.work(jobs))


@pytest.fixture
def doublers(tmp_path):
    pool = WorkerPool(
        lambda: ProcessWorker(Doubler, (str(tmp_path),)),
        2,
        retries=1,
        patience=30.0,
        first_answers=first_answers,
        fetch=fetch,
    )
    yield pool
    pool.shut_down()


@pytest.mark.parametrize("fate", [None, "die", pytest.param("hang", marks=pytest.mark.slow), "break"])
def test_each_job_has_one_outcome_after_any_fault_of_a_process(doublers, fate):
    outcomes = list(doublers.work(Job(number, (number, *([fate, 1] if number == 3 else []))) for number in range(8)))
    assert sorted((one.key, one.value) for one in outcomes) == [(number, 2 * number) for number in range(8)]
    assert {one.key: one.retries for one in outcomes}[3] == (fate is not None)


@pytest.mark.parametrize(
    ("cpus", "threads", "processes", "of_each"),
    [(1, None, 1, 1), (2, None, 1, 2), (7, None, 1, 7), (16, None, 4, 4), (8, 1, 8, 1), (2, 4, 1, 4)],
)
def test_processes_share_the_cpus(cpus, threads, processes, of_each, monkeypatch):
    monkeypatch.setattr("workflow.restore.processes.usable_cpus", lambda: cpus)
    found = spread(Resources(), threads)
    assert (found.workers, found.cpus_per_worker) == (processes, of_each)


def test_calls_larger_than_a_pipe_wait_for_no_answer(doublers):
    text = "voxel" * 1_000_000
    assert {len(one.value) for one in doublers.work(Job(number, (text,)) for number in range(6))} == {2 * len(text)}


def test_a_process_with_a_gpu_works_on_while_it_sends_an_answer(tmp_path):
    worker = ProcessWorker(Doubler, (str(tmp_path),), deque(["0"]))
    try:
        text = "voxel" * 1_000_000
        worker.call((text,))
        later = worker.call((7, "go on", 1))
        until((tmp_path / "7-0").exists, seconds=60)  # before anything is received
        while later.content is None:
            worker.receive()
        assert fetch(later) == 14
    finally:
        worker.end()


def test_a_process_ends_with_its_parent(tmp_path):
    script = """
import sys
from tests.doubler import Doubler
from workflow.restore.processes import ProcessWorker
worker = ProcessWorker(Doubler, (sys.argv[1],))
print(flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], cwd=ROOT, stdin=-1, stdout=-1) as parent:
        try:
            assert parent.stdout is not None
            parent.stdout.readline()
            (process,) = psutil.Process(parent.pid).children()
            parent.kill()
            until(lambda: not alive(process), seconds=60)
        finally:
            end(parent)


@pytest.mark.slow
def test_the_command_does_without_ray_and_gives_the_same_bytes(tmp_path):
    voxels = np.random.default_rng(0).gamma(2.0, 300.0, size=(24, 24, 24)).astype(np.float32)
    write_volume(tmp_path / "scan.nii.gz", voxels, Grid(FileShape(24, 24, 24), np.diag([-1.0, 1, 1, 1])), dtype="int16")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path / 'mlflow.db'}"

    def start(out, *options):
        command = [sys.executable, "-m", "workflow", "upscale", str(tmp_path / "scan.nii.gz"), "--json", *options]
        return subprocess.Popen(
            [*command, "--out", str(tmp_path / out)], cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True
        )

    digests: dict[str, str] = {}
    met: dict[str, set[str]] = {}
    for out, options in {"processes": (), "ray": ("--workers", "1")}.items():
        process = start(out, *options)
        met[out] = set()
        while process.poll() is None:
            met[out] |= {name for one in below(process) if (name := name_of(one))}
        reported, errors = process.communicate()
        assert process.returncode == 0, errors
        digests[out] = json.loads(reported)["volumes"][0]["sha256"]
    assert digests["processes"] == digests["ray"]
    assert "raylet" in met["ray"]
    assert "raylet" not in met["processes"]

    process = start("killed")
    until(lambda: below(process), process)
    family = below(process)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in said + errors
    until(lambda: not any(map(alive, family)), seconds=10)


def name_of(process):
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""
