"""The Ray that a command starts for itself: who reaches it, how it ends with its driver, and a start that fails."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import psutil
import pytest

from configs.axes import FileShape
from tasks.volume.grid import Grid
from tasks.volume.nifti import write_volume
from tests.processes import alive, below, end, until
from workflow.cluster import Request, stream

ROOT = Path(__file__).parents[2]


def started(folder, *command, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    whole = {**inherited, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", **environment}
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=whole, stdout=-1, stderr=-1, text=True)


def reach_beyond(process):
    """The addresses at which a process listens for other machines."""
    try:
        sockets = process.net_connections("inet")
    except psutil.Error:
        return []
    listening = [one.laddr for one in sockets if one.status == psutil.CONN_LISTEN]
    return [at for at in listening if not ip_address(at.ip.removeprefix("::ffff:")).is_loopback]


def listeners():
    yield len(psutil.Process().net_connections("inet"))


def test_no_port_of_our_ray_is_open_to_other_machines(ray_cluster):
    (sockets,) = stream(listeners, request=Request())
    assert sockets > 0
    me = psutil.Process()
    assert [(one.name(), at) for one in [me, *me.children(recursive=True)] for at in reach_beyond(one)] == []


SCRIPT = """
import sys
import ray
from workflow.cli import main
from workflow.cluster import cluster
import workflow.cli

def run():
    with cluster(1):
        print("ready", flush=True)
        sys.stdin.read()

workflow.cli.app = run
main()
"""
BROKEN = """
import ray
def broken(**_):
    raise TimeoutError("The GCS was not found.\\nin many lines")
ray.init = broken
"""


@pytest.mark.parametrize(
    ("script", "folder", "status", "message"),
    [
        (
            BROKEN + SCRIPT,
            None,
            1,
            r"Cannot start Ray on this machine: The GCS was not found\. Its load is [\d.]+ on \d+ CPUs?, and \d+ MiB of"
            r" memory are free\. Try again when the machine is less busy; Ray's logs are in (\S+)\.",
        ),
        (
            SCRIPT,
            "long" * 20,
            2,
            r"Cannot start Ray .*long: its path must have at most \d+ characters, received \d+\. Set",
        ),
        (SCRIPT, "missing", 2, r"Cannot start Ray in .*/missing: No such file or directory\. Set RAY_TMPDIR"),
    ],
    ids=["not in time", "long path", "no folder"],
)
def test_a_ray_that_does_not_start_is_one_message(tmp_path, script, folder, status, message):
    (tmp_path / ("long" * 20)).mkdir()
    short = tempfile.mkdtemp()
    environment = {"RAY_TMPDIR": short if folder is None else str(tmp_path / folder)}
    process = started(tmp_path, "-c", script, **environment)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert said.count("\n") == 1
    found = re.match(f"voxlift: {message}", said)
    assert found, said
    for logs in map(Path, found.groups()):
        assert list(logs.parent.glob("ray-*")) == [logs]
        logs.rmdir()
    assert not list((tmp_path / ("long" * 20)).iterdir())
    Path(short).rmdir()


@pytest.mark.slow
def test_a_ray_that_is_late_is_started_again_with_more_time(tmp_path):
    process = started(tmp_path, "-c", SCRIPT, RAY_gcs_server_port_wait_time_s="0")
    said, _ = process.communicate("", timeout=200)
    assert (process.returncode, said) == (0, "ready\n")


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    voxels = np.random.default_rng(0).gamma(2.0, 300.0, size=(24, 24, 24)).astype(np.float32)
    write_volume(path, voxels, Grid(FileShape(*voxels.shape), np.diag([-1.0, 1.0, 1.0, 1.0])), dtype="int16")
    return path


def has(process, name):
    """True if a process of that name is below another one."""
    for one in below(process):
        try:
            if name in one.name():
                return True
        except psutil.NoSuchProcess:
            continue
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("gcs_server", signal.SIGTERM),
        ("raylet", signal.SIGINT),
        ("RuntimeEnvAgent", signal.SIGKILL),
        ("ray::_Process", signal.SIGTERM),
        ("ray::_Process", signal.SIGKILL),
    ],
)
def test_at_any_moment_a_signal_ends_the_command_and_its_ray(tmp_path, scan, moment, number):
    process = started(
        tmp_path, "-m", "workflow", "upscale", str(scan), "--out", str(tmp_path / "out"), "--workers", "2"
    )
    try:
        until(lambda: has(process, moment), process)
        family = below(process)
        process.send_signal(number)
        said, errors = process.communicate(timeout=60)
        until(lambda: not any(map(alive, family)), seconds=10)
    finally:
        end(process)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in said + errors
    assert number == signal.SIGKILL or f"--out {tmp_path / 'out'} --workers 2 --resume\n" in said


CONNECTING = """
import os, signal
import ray._private.worker as worker
from workflow.cli import main
from workflow.cluster import cluster
import workflow.cli

connect = worker.connect

def interrupted(*given, **named):
    connect(*given, **named)
    os.kill(os.getpid(), signal.SIGTERM)

def run():
    worker.connect = interrupted
    with cluster(1):
        print("connected", flush=True)

workflow.cli.app = run
main()
"""


@pytest.mark.slow
def test_a_sigterm_while_ray_connects_ends_the_command_as_at_any_moment(tmp_path):
    process = started(tmp_path, "-c", CONNECTING)
    said, errors = process.communicate(timeout=120)
    assert (process.returncode, said) == (128 + signal.SIGTERM, ""), errors
    assert "SIGTERM received" not in errors
