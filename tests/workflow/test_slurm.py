"""The SLURM script as jobs of a real SLURM with two virtual nodes: nothing of it is replaced, but for Apptainer."""

import json
import math
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.processes import until
from tests.workflow.slurm_nodes import slurm_nodes
from tests.workflow.small_training_run import SmallTraining, require_same_weights
from tests.workflow.small_upscaling import SmallUpscaling, digests

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(900)]
SMALL_NODES = "--nodes=2 --cpus-per-task=1 --mem=5G"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with slurm_nodes(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture
def slurm(running):
    """The SLURM as a new login shell has it."""
    return replace(running, environment=dict(running.environment))


@pytest.fixture(scope="module")
def upscaling(tmp_path_factory):
    return SmallUpscaling(tmp_path_factory.mktemp("upscaling"), volumes=6, shape=(50, 60, 54)).prepare()


@pytest.fixture(scope="module")
def expected(upscaling):
    return upscaling.run_here("here", "--workers", "1")


def last_report(log):
    """The JSON object that the last attempt has printed."""
    return json.loads(log[log.rindex("\n{\n") :].rpartition("\n}\n")[0] + "}")


def requeued(slurm, job):
    """Wait until a job is in the queue again; let it start before SLURM's delay of minutes is over, for an hour."""
    until(lambda: slurm.fields(job)["JobState"] == "PENDING", every=0.3)
    # Not at once: a node refuses a job that is sent to it again in the second in which it had to end it.
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now+10", "TimeLimit=60")


def test_volumes_survive_a_cancelled_and_a_requeued_job(slurm, upscaling, expected):
    command = upscaling.command("volumes", "--workers", "2", "--resume")
    # Either node could hold both workers.
    first = slurm.submit("--nodes=2 --cpus-per-task=2 --mem=5G", *command)
    until(lambda: upscaling.cores("volumes") >= 2)
    assert set(slurm.workers(first)) == {"node1", "node2"}
    slurm.run("scancel", first)
    slurm.ended(first)
    until(lambda: not slurm.processes(first))
    assert slurm.left_by(first) == []

    kept = upscaling.cores("volumes") + upscaling.outputs("volumes")
    options = "--nodes=2 --cpus-per-task=1 --mem-per-cpu=5G --gres=gpu:1 --export=NONE"
    second = slurm.submit(options, *command, "--gpus-per-worker", "1")
    until(lambda: upscaling.cores("volumes") + upscaling.outputs("volumes") > kept)
    slurm.run("scontrol", "requeue", second)
    requeued(slurm, second)
    assert slurm.ended(second) == 0, slurm.log(second)
    assert slurm.fields(second)["Restarts"] == "1"
    report = last_report(slurm.log(second))
    assert digests(report) == expected
    assert "CANCELLED" in slurm.log(second)  # of the first attempt
    assert slurm.left_by(second) == []


def test_a_training_that_runs_out_of_time_is_requeued_and_resumed(slurm, tmp_path):
    work = SmallTraining(tmp_path, steps=1500).prepare()
    slurm.environment["MLFLOW_TRACKING_URI"] = work.store
    slurm.environment["VOXLIFT_REQUEUE"] = "1"
    job = slurm.submit(f"{SMALL_NODES} --time=60", *work.command("out", "--resume"))

    def steps():
        recorded = tmp_path / "out" / "run.json"
        return (
            recorded.exists()
            and "train/loss" in client.get_run(json.loads(recorded.read_text())["run_id"]).data.metrics
        )

    client = MlflowClient(work.store)
    until(steps, every=0.1)
    (worker,) = slurm.workers(job).values()
    # Suspended, it does not finish before SLURM looks at its limits, which it does twice a minute.
    worker.suspend()
    spent = datetime.now() - datetime.fromisoformat(slurm.fields(job)["StartTime"])
    limit = math.ceil((spent.total_seconds() + 45) / 60)
    slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")
    until(lambda: "The time limit is near" in slurm.log(job))
    worker.resume()
    requeued(slurm, job)
    (checkpoint,) = (tmp_path / "out" / "checkpoints").iterdir()
    assert slurm.ended(job) == 0, slurm.log(job)
    report = last_report(slurm.log(job))
    assert checkpoint.name == f"step-{report['resumed_from']:08d}.npz"
    assert 0 < report["resumed_from"] < work.steps
    assert slurm.left_by(job) == []
    require_same_weights(report, work.run_here())


def test_each_task_of_a_job_array_has_its_volume(slurm, upscaling, expected):
    slurm.environment["MLFLOW_TRACKING_URI"] = upscaling.store
    command = upscaling.command("array", "--workers", "1")
    volumes, rest = [one for one in command if "scan-" in one], [one for one in command if "scan-" not in one]
    each = volumes[0].replace("scan-0", "scan-%a")
    array = slurm.submit("--array=0-1 --nodes=1 --cpus-per-task=1 --mem=5G", rest[0], each, *rest[1:])
    assert [slurm.ended(f"{array}_{task}") for task in (0, 1)] == [0, 0]
    jobs = [slurm.fields(f"{array}_{task}")["JobId"] for task in (0, 1)]
    assert [digests(last_report(slurm.log(job))) for job in jobs] == [[one] for one in expected[:2]]
    assert [slurm.left_by(job) for job in jobs] == [[], []]


@pytest.mark.parametrize("image", ["", "voxlift.sif"])
def test_ray_has_the_resources_of_the_job_and_a_refused_command_its_status(slurm, upscaling, image, tmp_path):
    options = "--nodes=1 --cpus-per-task=2 --mem-per-cpu=2G"
    if image:
        options = "--nodes=1 --cpus-per-task=2 --gpus-per-node=1 --mem-per-gpu=4G"
        use_image(slurm, image, tmp_path)
    job = slurm.submit(options, *upscaling.command("refused", "--workers", "2", "--memory-budget", "9000"))
    assert slurm.ended(job) == 2, slurm.log(job)
    gpus = "1 GPU" if image else "0 GPUs"
    assert f"the cluster has 2 CPUs, {gpus} and 2457 MiB on 1 node" in last_report(slurm.log(job))["error"]
    assert slurm.left_by(job) == []


def use_image(slurm, image, folder):
    """Run jobs in an image, by a stand-in for Apptainer; only there is the environment of voxlift on the path."""
    program = folder / "apptainer"
    inside = f'PATH="{Path(sys.executable).parent}:$PATH" exec "$@"'
    program.write_text(f'#!/bin/sh\n[ "$1 $2" = "exec {image}" ] || exit 99\nshift 2\n{inside}\n')
    program.chmod(0o755)
    slurm.environment["PATH"] = f"{folder}:{slurm.environment['PATH']}"
    slurm.environment.update(VOXLIFT_IMAGE=image, VOXLIFT_VENV="/nowhere")


def test_submitted_from_elsewhere_it_says_where_from(slurm, tmp_path):
    (tmp_path / "configs").symlink_to(slurm.checkout / "configs")
    job = slurm.submit("--nodes=1", "doctor", cwd=tmp_path)
    assert slurm.ended(job) == 2
    assert f"{tmp_path} is not its checkout" in slurm.log(job, cwd=tmp_path)
