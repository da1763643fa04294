"""Planted faults, each found before any training step, each with its remedy; and a dry run that finds nothing wrong."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from rich.console import Console

from configs.axes import FileShape, NetworkShape
from configs.errors import RunError
from configs.load import load_config
from models.network.cost import Cost
from models.network.graph import read_graph
from models.network.receptive_field import receptive_field
from tasks.artifacts.model_card import add_card, make_card
from tasks.machine.check import Checklist
from tasks.rehearsal import RehearsedShard, RehearsedStep
from tasks.sharding.plan import plan_shards
from tasks.volume.grid import Grid
from tasks.volume.nifti import read_volume, write_volume
from tests.conftest import unused_port
from tests.networks import small_restorer
from tests.ray_nodes import ray_nodes
from tests.tasks.images import affine, save
from tests.tasks.small_training import SMALL
from tests.tasks.small_training import volume as blobs
from tests.tasks.test_labels import regions
from tests.workflow.test_demo import ROOT, voxlift
from workflow.checks.dry_run import DryRunOptions, dry_run
from workflow.checks.estimates import restoring_seconds, seconds_per_step
from workflow.checks.plans import PlannedVolume
from workflow.checks.volumes import check_volumes

# More than any machine of a test has: what needs a worker is not tried, and the test takes no time.
TOO_MANY = "resources.workers=99"


def found(config="demo", *settings, out=Path("out"), **options):
    """Run a dry run in this process and return its findings; by check, its messages joined."""
    report = dry_run(DryRunOptions(config, out, settings=settings, **options), Console(stderr=True))
    assert not report.ok
    # No training step and no shard.
    assert {check.name for check in report.checks}.isdisjoint({"training step", "shard"})
    assert report.estimates.seconds_per_step is None
    return {check.name: check for check in report.checks}, report.faults


def fault(faults, *parts):
    """The one message that holds all of these."""
    (one,) = [each for each in faults if all(part in each for part in parts)]
    return one


def write(path, shape=(24, 20, 22), seed=0, spacing=(1, 1, 1)):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.zeros(shape, np.float32)
    voxels[4:-4, 4:-4, 4:-4] = 100 * blobs(seed)[4 : shape[0] - 4, 4 : shape[1] - 4, 4 : shape[2] - 4]
    write_volume(path, voxels, Grid(shape, np.diag([*spacing, 1.0])), dtype="int16")
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory of its own, which a dry run must leave as it was."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything_in(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        ("demo", ["training.stepz=3"], "it has no key training.stepz. Did you mean training.steps?"),
        ("demmo", [], "Name a YAML file or one of the presets demo,"),
        ("demo", ["training.patch=[16, 112, 100]"], "received 100 along width: take 112"),
        ("demo", ["training.batch_size=3", "training.replicas=2"], "received 3 over 2: take a batch_size of 4"),
        ("demo", ["degradation=iso3x"], "Choose one of iso2x, kspace2x"),
        ("demo", ["training.steps"], "the form is section.key=value. Correct the configuration or the --set option."),
    ],
)
def test_a_configuration_that_is_wrong_ends_the_list(place, config, settings, said):
    checks, faults = found(config, *settings)
    assert list(checks) == ["configuration"]
    assert said in fault(faults, "Cannot")
    assert not list(place.iterdir())


@pytest.mark.usefixtures("ray_cluster")
def test_every_bad_volume_and_all_else_that_is_wrong_is_named_at_once(place, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{unused_port()}")
    listed = [write(place / "scans" / f"sub-{number:02}_T1w.nii.gz", seed=number) for number in range(20)]
    whole = listed[7].read_bytes()
    listed[7].write_bytes(whole[: len(whole) // 2])
    listed[11].unlink()
    with gzip.open(listed[13], "rb") as file:
        header = file.read()[:352]
    listed[13].write_bytes(gzip.compress(header + bytes(24 * 20 * 22 * 2)))
    save(listed[15], regions(9, (24, 20, 22)).astype(float), affine(), dtype="i2")
    inputs = [write(place / folder / "scan.nii.gz") for folder in ("one", "two")]
    small_restorer().save(place / "small.keras")
    (place / "out").write_text("a file")
    before = everything_in(place)

    checks, faults = found(
        "demo",
        *SMALL,
        TOO_MANY,
        f"data.volumes={[str(path) for path in listed]}",
        "data.held_out=null",
        "resources.memory_budget_mib=30",
        out=place / "out" / "run",
        inputs=[*map(str, inputs), "gone-*.nii.gz"],
        model=str(place / "small.keras"),
        scale=(2, 2, 2),
    )

    assert "truncated" in fault(faults, "sub-07_T1w.nii.gz")
    assert "no such file" in fault(faults, "sub-11_T1w.nii.gz").lower()
    assert "there is nothing to restore. Leave it out" in fault(faults, "sub-13_T1w.nii.gz")
    assert "no volume matches it; check the pattern. Fix" in fault(faults, "gone-*.nii.gz")
    assert "it is a label map (its 10 values" in fault(faults, "sub-15_T1w.nii.gz")
    assert checks["data"].seen.count("\n") == 4
    assert "Rename them or upscale them into separate folders" in fault(faults, "2 inputs would become this one")
    assert "Name a folder that you may write to with --out" in fault(faults, "Cannot write to", "out/run")
    assert "Start the server" in fault(faults, "Cannot record in the tracking store", "127.0.0.1")
    assert "room for 0. Ask for fewer workers or less" in fault(faults, "Cannot start 1 worker of 99 CPUs")
    assert "room for 4. Ask for fewer workers" in fault(faults, "Cannot start 99 workers of 1 CPU")
    assert [check.status for check in (checks["model"], checks["replicas"], checks["cluster"])] == ["ok"] * 3
    assert "Raise resources.memory_budget_mib to" in fault(faults, "the memory budget of 30 MiB holds no shard")
    assert everything_in(place) == before


@pytest.mark.usefixtures("ray_cluster")
def test_a_model_outside_its_range_a_full_disk_a_deleted_experiment(place, monkeypatch, store):
    client = MlflowClient(store.uri)
    client.delete_experiment(client.create_experiment("given up", artifact_location=store.artifacts.as_uri()))
    config = load_config("demo", SMALL)
    small_restorer().save(place / "iso2x.keras")
    add_card(place / "iso2x.keras", make_card(config, 100, 10, 1, (1.0, 1.0)))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 10**5, 10**5))
    source = write(place / "thick.nii.gz", spacing=(1, 1, 4))
    before = everything_in(place)

    checks, faults = found(
        "iso2x",
        *SMALL,
        TOO_MANY,
        "training.early_stopping={every: 10}",
        "tracking.experiment=given up",
        "data.volumes=[gone.nii.gz]",
        inputs=[str(source)],
        model=str(place / "iso2x.keras"),
        spacing=(1, 1, 1),
    )

    assert "Choose a model that was trained for it" in fault(faults, "scale 4 along depth: the model was trained for 2")
    assert "scale 1 along height" in checks["range of the model"].seen
    assert "MiB of room there, or name a folder on another disk" in fault(faults, "Cannot store what the run writes")
    assert "Restore it, or use another name" in fault(faults, "experiment given up: it was deleted")
    assert "Name some with --set data.validation" in fault(faults, "Cannot stop early: no validation volume is named")
    assert checks["shard plan"].status == "ok"
    assert everything_in(place) == before


@pytest.mark.usefixtures("ray_cluster", "store")
def test_a_model_that_is_none_and_a_scan_that_is_not_named(place):
    (place / "model.keras").write_text("hello")
    _, faults = found("self4x", TOO_MANY, model=str(place / "model.keras"))
    assert "Name a .keras file saved by voxlift" in fault(faults, "Cannot read the model model.keras")
    assert "Name the thick-slice scan with --set data.volumes" in fault(faults, "Cannot train from slices")


def test_no_answer_at_ray_address_is_reported_without_ray_and_tensorflow(place):
    address = f"127.0.0.1:{unused_port()}"
    environment = {"RAY_ADDRESS": address, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{unused_port()}"}
    ran = voxlift(place, "dry-run", "demo", "--json", environment=environment)
    assert ran.returncode == 2, ran.stderr
    report = json.loads(ran.stdout)
    assert not report["ok"]
    assert report["cluster"] is None
    assert {check["name"]: check["status"] for check in report["checks"]} == {
        "configuration": "ok",
        "data": "ok",
        "output folder": "ok",
        "tracking": "failed",
        "cluster": "failed",
    }
    for check in report["checks"]:
        assert set(check) == {"name", "tried", "seen", "status", "remedy"}
    said = [line for line in ran.stderr.splitlines() if line.startswith("voxlift: ")]
    assert len(said) == 2
    assert f"voxlift: Cannot join the Ray cluster at {address}" in said[0] + said[1]
    assert not list(place.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster", "store")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["network.stages=[{filters: 2, kernel_size: [4, 4, 4], strides: [2, 4, 4]}]", "network.convolutions=0"],
            "the last stage must have 1 filter, the channel of a volume. Edit network.stages",
        ),
        (
            ["network.stages=[{filters: 1, kernel_size: [1, 4, 4], strides: [2, 4, 4]}]", "network.convolutions=0"],
            "which leaves holes. Use kernel 4",
        ),
        (["training.patch=[512, 512, 512]", "training.batch_size=64"], "Use a smaller training.patch"),
        (["training.replicas=64", "training.batch_size=64", "resources.memory_budget_mib=1"], "holds no shard"),
    ],
)
def test_what_only_a_worker_sees_is_found_before_a_step(place, settings, said):
    _, faults = found("demo", *SMALL, "resources={workers: 1, memory_budget_mib: 100}", *settings)
    assert said in fault(faults, "Cannot")
    assert not list(place.iterdir())


@pytest.mark.slow
def test_a_batch_that_does_not_divide_by_the_gpus_of_the_cluster(place):
    with ray_nodes(place, "--num-cpus=2 --num-gpus=1", "--num-cpus=2 --num-gpus=3") as nodes:
        ran = voxlift(place, "dry-run", "demo", "--json", environment=nodes.environment)
    report = json.loads(ran.stdout)
    assert ran.returncode == 2
    assert report["cluster"]["nodes"] == 2
    assert report["cluster"]["gpus"] == 4
    assert "received 2 over 3 GPUs. Use a batch_size of 3, or set training.replicas" in ran.stderr


@pytest.mark.slow
def test_much_to_read_is_read_by_processes_and_every_bad_volume_named(place, monkeypatch):
    monkeypatch.setattr("workflow.checks.volumes.PROCESSES_FROM", 0)
    paths = [write(place / f"{number}.nii.gz", seed=number) for number in range(4)]
    for number in (1, 3):
        paths[number].write_bytes(paths[number].read_bytes()[:-300])
    config = load_config("demo", [*SMALL, f"data.volumes={[str(path) for path in paths]}", "data.held_out=null"])
    checks = Checklist()
    seen = check_volumes(checks, config, [])
    assert [fault.split(":")[0] for fault in checks.failures] == ["Cannot read 1.nii.gz", "Cannot read 3.nii.gz"]
    assert seen.training == 2
    assert seen.source is not None
    assert seen.source.training.fine.shape == (22, 20, 24)


def test_times_add_up():
    network = small_restorer()
    graph = read_graph(network.get_config())
    plan = plan_shards(NetworkShape(96, 128, 128), Cost(graph, receptive_field(graph)), 44)
    volume = PlannedVolume("scan.nii", plan, coarse=list, core_bytes=0)  # type: ignore[arg-type] # never read
    shard = RehearsedShard(first_seconds=3.0, seconds=2.0, shard_bytes=0)
    one, two = (restoring_seconds([volume], shard, volume, workers) for workers in (1, 2))
    count = len(plan.shards)
    assert count > 2
    assert one == pytest.approx(2 * count + 1)
    assert two == pytest.approx(2 * -(-count // 2) + 1)
    step = RehearsedStep(0.1, fill_seconds=1, first_seconds=2, step_seconds=0.5, patch_seconds=0.2, replica_bytes=0)
    assert seconds_per_step(step, "CPU", threads=2) == pytest.approx(0.6)
    assert seconds_per_step(replace(step, patch_seconds=1.4), "GPU", threads=2) == pytest.approx(0.7)


# The network of the presets on patches and volumes that take seconds, not milliseconds.
RULES = (
    "training={steps: 80, patch: [16, 64, 64]}",
    "data.held_out=null",
    "resources={workers: 1, cpus_per_worker: 2, memory_budget_mib: 250}",
)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(1500)
def test_estimates_are_within_half_of_what_the_run_then_takes(tmp_path):
    brain = write(tmp_path / "brain.nii.gz", (44, 46, 48))
    small = read_volume(brain)
    voxels = np.kron(small.voxels, np.ones((2, 2, 2), np.float32))
    write_volume(tmp_path / "scan.nii.gz", voxels, Grid(FileShape(*voxels.shape), small.grid.affine), dtype="int16")
    before = everything_in(tmp_path)
    rules = [argument for rule in (*RULES, f"data.volumes=[{brain}]") for argument in ("--set", rule)]
    inputs = ["--input", "scan.nii.gz", "--scale", "2,2,2"]
    misses = []
    # Other work on the machine may come between an estimate and the run; it does not do so each time.
    for turn in range(3):
        out = f"run{turn}"
        rehearsed = voxlift(tmp_path, "dry-run", "demo", "--json", *rules, *inputs, "--out", out)
        assert rehearsed.returncode == 0, rehearsed.stderr
        if turn == 0:
            assert everything_in(tmp_path) == before
        estimates = json.loads(rehearsed.stdout)["estimates"]
        began = time.perf_counter()
        trained = voxlift(tmp_path, "train", "demo", "--json", *rules, "--out", out)
        upscaled = voxlift(
            *(tmp_path, "upscale", "scan.nii.gz", "--model", f"{out}/model.keras", "--out", out, "--scale", "2,2,2"),
            *("--workers", "1", "--cpus-per-worker", "2", "--memory-budget", "250", "--json"),
        )
        total = time.perf_counter() - began
        assert (trained.returncode, upscaled.returncode) == (0, 0), trained.stderr + upscaled.stderr
        training, restoring = json.loads(trained.stdout), json.loads(upscaled.stdout)
        assert estimates["shards"] == restoring["volumes"][0]["shards"] > 3
        assert estimates["overhead"] == pytest.approx(restoring["plan"]["overhead"])
        for kind in ("replica_mib", "shard_mib"):
            assert 2 / 3 < estimates[kind]["measured"] / estimates[kind]["estimated"] < 1.5
        ratios = {
            "training": training["seconds"] / estimates["training_seconds"],
            "restoring": restoring["seconds"] / estimates["restoring_seconds"],
            "total": total / estimates["total_seconds"],
        }
        if all(2 / 3 < ratio < 1.5 for ratio in ratios.values()):
            return
        misses.append(ratios)
    raise AssertionError(misses)


@pytest.mark.slow
def test_the_driver_loads_no_tensorflow(tmp_path):
    rules = [argument for rule in SMALL for argument in ("--set", rule)]
    script = (
        "import sys; from workflow.cli import app; app(sys.argv[1:], standalone_mode=False);"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/there/runs.db", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, "dry-run", "demo", *rules]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "training step" in ran.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "seen", "remedy"),
    [
        (RunError("the worker\n did not answer."), "the worker did not answer.", "Leave it out."),
        (
            RunError("Cannot read a.nii: it is truncated.", "Copy it again."),
            "Cannot read a.nii: it is truncated.",
            None,
        ),
    ],
)
def test_a_check_gives_its_remedy_where_an_error_has_none(error, seen, remedy):
    def fail():
        raise error

    checks = Checklist()
    with checks.trying("data", "reading it", "Leave it out."):
        fail()
    assert (checks.checks[0].seen, checks.checks[0].remedy) == (seen, remedy or error.remedy)
    assert checks.failures == [f"{seen} {remedy or error.remedy}"]
