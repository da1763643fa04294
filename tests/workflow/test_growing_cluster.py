"""Runs of the command on a real cluster that grows and shrinks: Ray's autoscaler, with nodes on this machine."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.growing_cluster import growing_cluster
from tests.workflow.small_upscaling import ROOT, SmallUpscaling, digests

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(600)]
MOST = 2

SCRIPT = """
import sys, time
from configs.errors import ConfigError
from workflow.cluster import Request, cluster, require_room, room
with cluster():
    nodes = lambda: room(Request())
    if sys.argv[1] == "shrunk":
        while nodes():
            time.sleep(0.1)
    else:
        began = time.monotonic()
        try:
            require_room(int(sys.argv[1]), Request(memory_mib=90))
        except ConfigError as error:
            print(error)
        print(time.monotonic() - began)
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with growing_cluster(tmp_path_factory.mktemp("cluster"), MOST) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return SmallUpscaling(tmp_path_factory.mktemp("job"), volumes=1, shape=(70, 80, 66)).prepare()


@pytest.fixture(scope="module")
def here(job):
    return job.run_here("here", "--workers", "1", "--no-qc")


def run(nodes, *command, store=None):
    environment = {**os.environ, **nodes.environment} | ({"MLFLOW_TRACKING_URI": store} if store else {})
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def upscale(nodes, job, out, *options):
    return run(nodes, "-m", "workflow", *job.command(out, "--no-qc", *options), store=job.store)


def test_what_the_limits_could_never_place_is_refused_at_once(nodes, job):
    refused = run(nodes, "-c", SCRIPT, str(MOST + 1))
    message, seconds = refused.stdout.splitlines()
    assert re.match(r"Cannot start 3 workers of 1 CPU, 0 GPUs and 90 MiB each: the cluster has 0 CPUs\b", message)
    assert "on 1 node, room for 0, and its autoscaler cannot add enough." in message
    assert float(seconds) < 5
    done = upscale(nodes, job, "refused", "--workers", str(MOST + 1))
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["error"] == message
    assert not job.outputs("refused")


@pytest.mark.parametrize("workers", [str(MOST), "auto"])
def test_a_run_waits_for_nodes_and_uses_those_that_come(nodes, job, here, workers):
    assert run(nodes, "-c", SCRIPT, "shrunk").returncode == 0  # those that were added before are removed again
    done = upscale(nodes, job, workers, "--workers", workers)
    assert done.returncode == 0, done.stderr
    assert "Waiting for the cluster to grow, for a worker of 1 CPU, 0 GPUs and 90 MiB …" in done.stderr
    report = json.loads(done.stdout)
    assert digests(report) == here
    assert report["workers"] <= MOST
