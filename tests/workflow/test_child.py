"""Work that is done before Ray would have started: one process of this machine does it."""

import json
import os
import signal
import subprocess
import sys
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
from tests.networks import small_restorer
from tests.processes import alive, below, end, until
from workflow.restore.child import Child
from workflow.restore.worker_pool import Job

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


def only_child():
    """The process that restores."""
    (found,) = [one for one in psutil.Process().children() if "workflow.restore.child" in " ".join(one.cmdline())]
    return found


def test_a_child_restores_and_a_killed_one_is_replaced(network, jobs):
    expected = Restorer(network.name, network.content, None)(*jobs[0].arguments).voxels
    with Child(network, Resources(retries=1)) as child:
        outcomes = child.work(jobs)
        first = next(outcomes)
        only_child().kill()
        second = next(outcomes)
        process = only_child()
    assert [(one.key, one.error, one.retries) for one in (first, second)] == [(0, None, 0), (1, None, 1)]
    assert np.array_equal(first.value.voxels, second.value.voxels)
    np.testing.assert_allclose(first.value.voxels, expected, rtol=1e-4, atol=0.1)
    assert not alive(process)


def test_a_network_that_cannot_be_loaded_is_refused(network, jobs):
    broken = replace(network, content=network.content[:100])
    with Child(broken, Resources()) as child, pytest.raises(InputError, match=r"Cannot load the model small\.keras"):
        list(child.work(jobs))


def test_a_child_ends_with_its_parent():
    script = """
import sys
from configs.schema import Resources
from tasks.artifacts.shipped import shipped_network
from workflow.restore.child import Child
child = Child(shipped_network(), Resources())
print(flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdin=-1, stdout=-1) as parent:
        try:
            assert parent.stdout is not None
            parent.stdout.readline()
            (child,) = psutil.Process(parent.pid).children()
            parent.kill()
            until(lambda: not alive(child), seconds=60)
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
    for out, options in {"child": (), "worker": ("--workers", "1")}.items():
        process = start(out, *options)
        met[out] = set()
        while process.poll() is None:
            met[out] |= {name for one in below(process) if (name := name_of(one))}
        reported, errors = process.communicate()
        assert process.returncode == 0, errors
        digests[out] = json.loads(reported)["volumes"][0]["sha256"]
    assert digests["child"] == digests["worker"]
    assert "raylet" in met["worker"]
    assert "raylet" not in met["child"]

    process = start("killed")
    until(lambda: len(below(process)) > 1, process)
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
