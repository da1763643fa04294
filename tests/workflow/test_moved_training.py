"""A training on a real cluster: one whose node dies goes on on another node, to the same weights, and one with a GPU
has its patches drawn by processes."""

import json
import os
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest
from mlflow import MlflowClient

from tests.processes import below, end, until
from tests.ray_nodes import ray_nodes
from tests.workflow.small_training_run import SmallTraining, require_same_weights
from tests.workflow.small_upscaling import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 300


def test_a_training_outlives_its_node(tmp_path):
    job = SmallTraining(tmp_path, STEPS).prepare()
    whole = job.run_here()
    checkpoints = tmp_path / "moved" / "checkpoints"
    # A head that cannot hold the training, and two nodes that can.
    with ray_nodes(tmp_path, "--num-cpus=0", *["--num-cpus=1"] * 2) as cluster, (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "workflow", *job.command("moved", "--set=training.checkpoints.every=50")]
        environment = {**os.environ, **cluster.environment, "MLFLOW_TRACKING_URI": job.store}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log)
        until(lambda: list(checkpoints.glob("step-*.npz")), process)
        (home,) = [node for node in cluster.processes if any("_streamed" in one.name() for one in below(node))]
        end(home)
        reported, _ = process.communicate(timeout=400)
    said = (tmp_path / "log").read_text()
    assert process.returncode == 0, said
    assert said.count("The training goes on from its last checkpoint in another process, 1 of at most 3: ") == 1
    report = json.loads(reported)
    assert 0 < report["resumed_from"] < STEPS
    require_same_weights(whole, report)
    history = MlflowClient(job.store).get_metric_history(report["mlflow"]["run_id"], "train/loss")
    assert [point.step for point in history] == list(range(1, STEPS + 1))  # each once
    assert not (tmp_path / "moved" / "run.lock").exists()


def test_the_cpus_that_go_with_a_gpu_draw_patches(tmp_path):
    """A logical GPU, of which TensorFlow sees nothing."""
    job = SmallTraining(tmp_path, 40).prepare()
    whole = job.run_here()
    with ray_nodes(tmp_path, "--num-cpus=6 --num-gpus=2") as cluster, (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "workflow", *job.command("gpu", "--set=training.replicas=1")]
        environment = {**os.environ, **cluster.environment, "MLFLOW_TRACKING_URI": job.store}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log)
        until(lambda: drawing_below(cluster.processes[0]) == 2, process)
        reported, _ = process.communicate(timeout=400)
        assert process.returncode == 0, (tmp_path / "log").read_text()
        until(lambda: not drawing_below(cluster.processes[0]), seconds=30)
    require_same_weights(whole, json.loads(reported))


def drawing_below(process):
    """Count the processes below one that draw patches."""
    found = 0
    for one in below(process):
        with suppress(psutil.Error):
            found += "tasks.training.drawing" in " ".join(one.cmdline())
    return found
