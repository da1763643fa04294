"""`voxlift doctor`: everything tried on this machine, and real faults found, each with its remedy."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path

import keras
import numpy as np
import psutil
import pytest
import tensorflow as tf
from rich.console import Console

import models.network.phases
from configs.errors import InputError
from models.network.identity import build_identity
from tasks.machine import tensorflow_check
from tasks.machine.check import Check, Checklist
from tasks.machine.cpus import cpu_quota
from tasks.machine.tensorflow_check import TRANSPOSED, scattered, tensorflow_checks
from tests.models.scatter import as_tensorflow
from tests.ray_nodes import ray_nodes
from workflow.checks import machine as doctor_machine
from workflow.checks.doctor import trying_tensorflow
from workflow.checks.ray_checks import object_store, ray_checks
from workflow.checks.report import ChecksReport, checks_table
from workflow.checks.store import store_checks
from workflow.cluster.resources import Node, inventory

ROOT = Path(__file__).parents[2]
MACHINE = ["Python", "packages", "CPU threads", "working directory", "temporary folder"]
TENSORFLOW = [
    *("TensorFlow", "convolution on CPU:0", "precisions on CPU:0", "XLA", "transposed convolution", "saved network"),
]
RAY = ["Ray", "Ray actor", "object store", "nodes", "partition of unity"]


def doctor(folder, *options, **environment):
    """A whole run in a folder: (exit status, the JSON object, standard error)."""
    inherited = {key: value for key, value in os.environ.items() if key not in {"RAY_ADDRESS", "MLFLOW_TRACKING_URI"}}
    done = subprocess.run(
        [sys.executable, "-m", "workflow", "doctor", "--json", *options],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, json.loads(done.stdout), done.stderr


def statuses(checks):
    return {check.name: check.status for check in checks}


def examined(examine, *arguments):
    """The check that a single examination makes."""
    checks = Checklist()
    with checks.trying("lamp", "looking", "Wait.") as attempt:
        examine(attempt, *arguments)
    return checks.checks[0]


def only(checks, name):
    (found,) = (check for check in checks if check.name == name)
    return found


def test_a_machine_that_works_passes_every_check(tmp_path):
    status, report, errors = doctor(tmp_path)
    assert set(report) == {"checks", "ok", "seconds"}
    assert [check["name"] for check in report["checks"]] == [*MACHINE, *TENSORFLOW, *RAY, "MLflow store"]
    failed = [check for check in report["checks"] if check["status"] == "failed"]
    assert (status, report["ok"], failed) == (0, True, []), errors
    for check in report["checks"]:
        assert set(check) == {"name", "tried", "seen", "status", "remedy"}
        assert (check["remedy"] is None) == (check["status"] == "ok")
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db"}


@pytest.mark.slow
def test_faults_are_found_together_and_stop_nothing_else(tmp_path, free_port):
    (tmp_path / "pins.txt").write_text("numpy==0.0.1\n")
    address = f"127.0.0.1:{free_port}"
    status, report, _ = doctor(
        tmp_path,
        "--constraints",
        "pins.txt",
        RAY_ADDRESS=address,
        MLFLOW_TRACKING_URI=f"http://{address}",
        KERAS_BACKEND="pencil",
    )
    found = {check["name"]: check for check in report["checks"]}
    assert (status, report["ok"]) == (1, False)
    assert [name for name, check in found.items() if check["status"] == "failed"] == [
        *TENSORFLOW,
        *RAY,
        "MLflow store",
        "MLflow server",
    ]
    assert found["packages"]["status"] == "warning"
    for part in (f"Cannot join the Ray cluster at {address}, named by RAY_ADDRESS: ", "refused"):
        assert part in found["Ray"]["seen"]
    assert found["Ray"]["remedy"] == "Start it, or unset RAY_ADDRESS to start one here."
    assert found["partition of unity"]["seen"] == "not tried: it needs Ray"
    assert f"http://{address}: Connection refused" in found["MLflow store"]["seen"]
    assert found["MLflow server"]["remedy"].startswith("Start the server")


@pytest.mark.slow
def test_a_folder_that_takes_no_files_is_reported():
    status, report, _ = doctor("/proc")
    failed = {check["name"]: check for check in report["checks"] if check["status"] == "failed"}
    assert (status, set(failed)) == (1, {"working directory", "MLflow store"})
    assert "unable to open database file" in failed["MLflow store"]["seen"]


@pytest.mark.slow
def test_a_cluster_of_two_nodes_is_joined(tmp_path):
    with ray_nodes(tmp_path, "--num-cpus=1", "--num-cpus=1 --num-gpus=1") as cluster:
        status, report, errors = doctor(tmp_path, **cluster.environment)
    found = {check["name"]: check for check in report["checks"]}
    assert status == 0, errors
    assert found["Ray"]["seen"].startswith(f"joined at {cluster.environment['RAY_ADDRESS']} in ")
    assert found["nodes"]["seen"].startswith("2 with 2 CPUs, 1 GPUs and ")


@pytest.mark.slow
def test_what_listens_at_ray_address_and_is_no_ray_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", RAY_SCRIPT],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": address},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
    seen, remedy = json.loads(done.stdout)[0][2:4]
    assert f"at {address}, named by RAY_ADDRESS: what listens there does not answer as Ray" in seen
    assert "port of its GCS" in remedy


RAY_SCRIPT = (
    "import json\nfrom workflow.checks.ray_checks import ray_checks\n"
    "print(json.dumps([[c.name, c.status, c.seen, c.remedy] for c in ray_checks(lambda: 1 / 0).checks]))"
)


def test_a_ray_that_is_not_there_is_reported(free_port):
    done = subprocess.run(
        [sys.executable, "-c", RAY_SCRIPT],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": f"127.0.0.1:{free_port}"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert [(name, status) for name, status, *_ in found] == [(name, "failed") for name in RAY]
    assert "Connection refused" in found[0][2]


def adding(amount):
    """A network that adds to what it is given."""
    inputs = keras.Input((None, None, None, 1))
    weights = {"kernel_initializer": "ones", "bias_initializer": keras.initializers.Constant(amount)}
    return keras.Model(inputs, keras.layers.Conv3D(1, 1, **weights)(inputs))


@pytest.mark.usefixtures("ray_cluster")
def test_voxels_that_do_not_come_back_as_they_went_are_found(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    adding(1e-4).save(tmp_path / "adding.keras")
    found = ray_checks(lambda: tmp_path / "adding.keras").checks
    assert [check.name for check in found] == RAY
    assert [check.name for check in found if check.status == "failed"] == ["partition of unity"]
    assert "2 workers, largest difference" in found[-1].seen


@pytest.mark.usefixtures("ray_cluster")
def test_an_object_store_beyond_shared_memory_is_reported():
    (node,) = inventory()
    assert node.here
    assert node.cpus == 4
    found = examined(object_store, (node,), Path("/proc"))
    assert found.status == "warning"
    assert "--shm-size" in str(found.remedy)


def test_a_small_object_store_anywhere_is_reported():
    here, other = (Node(name, name, "", 1, 0, 2**33, 2**30, here=name == "here") for name in ("here", "other"))
    assert examined(object_store, (here, other), Path("/no/such/folder")).status == "ok"
    small = replace(other, object_store_bytes=2**26)
    assert examined(object_store, (here, small), Path("/no/such/folder")).status == "warning"


def test_the_identity_returns_its_input_exactly():
    volume = np.random.default_rng(0).normal(size=(2, 6, 8, 10, 1)).astype(np.float32)
    network = build_identity()
    for form in (network, models.network.phases.with_phases(network, "CPU")):
        np.testing.assert_array_equal(form(volume), volume)


def test_tensorflow_of_this_machine_passes(tmp_path):
    found = list(tensorflow_checks(tmp_path))
    assert statuses(found) == dict.fromkeys(TENSORFLOW, "ok")
    assert keras.saving.load_model(tmp_path / "identity.keras", compile=False).name == "identity"


def test_a_precision_that_is_computed_wrongly_is_found(monkeypatch):
    convolve = tf.nn.conv3d

    def wrong(tensor, *arguments):
        made = convolve(tensor, *arguments)
        return made * 1.1 if tensor.dtype == tf.bfloat16 else made

    monkeypatch.setattr(tf.nn, "conv3d", wrong)
    found = examined(partial(tensorflow_check._compare_precisions, "CPU:0"))
    assert found.status == "failed"
    assert found.seen == "bfloat16 1e-01 of the largest value"


@pytest.mark.parametrize(("kernel_size", "strides"), TRANSPOSED)
def test_the_reference_is_that_of_the_tests(kernel_size, strides):
    random = np.random.default_rng(1)
    volume, weights = random.normal(size=(2, 3, 4, 5, 3)), random.normal(size=(*kernel_size, 2, 3))
    sizes = [size * stride for size, stride in zip(volume.shape[1:4], strides, strict=True)]
    expected = as_tensorflow(volume, weights, strides, sizes, "same")
    np.testing.assert_allclose(scattered(volume, weights, strides), expected, rtol=0, atol=1e-12)


def test_a_wrong_transposed_convolution_is_found(tmp_path, monkeypatch):
    right = models.network.phases.phase_block
    monkeypatch.setattr(
        models.network.phases, "phase_block", lambda k, s: replace(block := right(k, s), taps=block.taps[::-1])
    )
    found = only(tensorflow_checks(tmp_path), "transposed convolution")
    assert found.status == "failed"
    assert found.remedy


@pytest.mark.parametrize(
    ("settings", "name", "seen", "remedy"),
    [
        ({"KERAS_BACKEND": "pencil"}, "TensorFlow", "pencil", "Check that KERAS_BACKEND"),
        ({"KERAS_HOME": "{folder}"}, "TensorFlow", "channels_first", "keras.json"),
        ({"TF_XLA_FLAGS": "--no_such_flag"}, "TensorFlow process", "Unknown flag in TF_XLA_FLAGS", "make setup"),
        ({"PYTHONHOME": "/nowhere"}, "TensorFlow process", "ended with status 1 (last output: ", "make setup"),
    ],
)
def test_a_tensorflow_that_cannot_work_is_reported(settings, name, seen, remedy, tmp_path, monkeypatch):
    (tmp_path / "keras.json").write_text('{"image_data_format": "channels_first"}')
    for key, value in settings.items():
        monkeypatch.setenv(key, value.format(folder=tmp_path))
    with trying_tensorflow() as tensorflow:
        found = tensorflow.checks()
        with pytest.raises(InputError, match="not tried: TensorFlow saved no network"):
            tensorflow.identity()
    assert {check.status for check in found} == {"failed"}
    assert seen in only(found, name).seen
    assert remedy in only(found, name).remedy


def test_a_tensorflow_that_is_killed_is_reported():
    """As by a kernel that is out of memory, or by an instruction that the processor does not have."""
    before = set(psutil.Process().children())
    with trying_tensorflow() as tensorflow:
        (process,) = set(psutil.Process().children()) - before
        process.kill()
        (found,) = tensorflow.checks()
    assert found.seen == "ended by SIGKILL (last output: none) before its first check"


def test_without_any_temporary_folder_tensorflow_is_not_started(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/proc")
    with trying_tensorflow() as tensorflow:
        (found,) = tensorflow.checks()
    assert found.seen.startswith("not started (")


@pytest.mark.parametrize(
    ("lines", "status", "part"),
    [
        ("keras=={keras}\n# a remark\n\nno-such-package==1.0\n", "ok", "1 as pinned"),
        ("keras=={keras}\nnumpy==0.0.1  # of old\n", "warning", "1 as pinned, 1 not: numpy {numpy} (==0.0.1)"),
        (None, "warning", "pins.txt is not there to compare with"),
        ("hello world\n", "failed", "InvalidRequirement"),
    ],
)
def test_packages_are_held_against_the_pins(lines, status, part, tmp_path):
    versions = {"keras": keras.__version__, "numpy": np.__version__}
    if lines is not None:
        (tmp_path / "pins.txt").write_text(lines.format(**versions))
    found = only(doctor_machine.machine_checks(tmp_path / "pins.txt").checks, "packages")
    assert found.status == status
    assert part.format(**versions) in found.seen
    assert (found.remedy is None) == (status == "ok")


def test_a_requirement_that_is_not_met_is_a_failure(tmp_path, monkeypatch):
    meta = tmp_path / "voxlift-9.dist-info"
    meta.mkdir()
    needs = ("numpy>=99", "no-such-package>=1", "ruff>=99; extra == 'dev'")
    wanted = "".join(f"Requires-Dist: {need}\n" for need in needs)
    (meta / "METADATA").write_text(f"Metadata-Version: 2.4\nName: voxlift\nVersion: 9\nRequires-Python: >=4\n{wanted}")
    monkeypatch.syspath_prepend(tmp_path)
    found = doctor_machine.machine_checks(ROOT / "constraints.txt").checks
    assert only(found, "packages").seen == f"numpy {np.__version__} (needs >=99), no no-such-package"
    assert statuses(found) | {"packages": "failed", "Python": "failed"} == statuses(found)


def threads():
    return only(doctor_machine.machine_checks(ROOT / "constraints.txt").checks, "CPU threads")


def test_more_threads_than_cpus_are_reported(monkeypatch):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "999")
    assert threads().remedy.startswith("Set TF_NUM_INTRAOP_THREADS=")
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS")
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        assert threads().remedy == "Ask for --workers 1."
    finally:
        os.sched_setaffinity(0, cpus)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_cpu_quota_of_a_container_is_read(files, quota, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cpu_quota(tmp_path) == quota


def test_a_folder_without_room_is_reported(monkeypatch):
    script = (
        "import resource, signal, sys\nfrom pathlib import Path\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\nfrom workflow.checks.machine import machine_checks\n"
        "found = {check.name: check for check in machine_checks(Path('constraints.txt')).checks}\n"
        "print([found[name].status for name in ('working directory', 'temporary folder')])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "['failed', 'failed']\n"
    for limit, status in (("FEW_BYTES", "warning"), ("LEAST_BYTES", "failed")):
        monkeypatch.setattr(doctor_machine, limit, 2**80)
        found = only(doctor_machine.machine_checks(ROOT / "constraints.txt").checks, "working directory")
        assert found.status == status


def test_a_store_that_works_and_one_that_does_not(store, monkeypatch, free_port):
    server = ["MLflow server"] if store.uri.startswith("http") else []
    assert statuses(store_checks().checks) == dict.fromkeys(["MLflow store", *server], "ok")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    assert statuses(store_checks().checks) == {"MLflow store": "failed", "MLflow server": "failed"}


def test_whatever_is_raised_is_what_was_seen():
    def refuse(_):
        raise InputError("Cannot see it: it is dark.", "Light the lamp. Then look.")

    assert examined(refuse) == Check(
        "lamp", "looking", "Cannot see it: it is dark.", "failed", "Light the lamp. Then look."
    )
    broken = examined(lambda attempt: attempt.ok(str(1 / 0)))
    assert broken.seen == "Cannot check lamp: ZeroDivisionError: division by zero"
    assert (broken.status, broken.remedy) == ("failed", "Wait.")
    assert examined(lambda attempt: attempt.ok("bright")).remedy is None
    assert examined(lambda attempt: attempt.warning("dim")).remedy == "Wait."


def test_the_table_has_a_line_for_each_check_and_the_remedies():
    found = (Check("Ray", "starting", "started"), Check("disk", "writing", "[full]", "failed", "Make room."))
    output = StringIO()
    console = Console(width=120, file=output)
    console.print(checks_table(ChecksReport(checks=found, ok=False, seconds=2.4)))
    text = output.getvalue()
    for part in ("ok", "started", "failed", "[full]", "→ Make room.", "2 checks in 2 s: 1 failed, 0 warnings"):
        assert part in text
