"""The image of `make image` as the pod of KubeRay: its own commands start, probe and use Ray in it, in namespaces."""

import json
import re
import secrets
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from tests.processes import until
from tests.workflow.small_training_run import SmallTraining
from tests.workflow.small_upscaling import ROOT, SmallUpscaling, digests, report_in

pytestmark = [pytest.mark.image, pytest.mark.timeout(900)]
# Read-only but for the mounts of the manifest; a network of its own, in which KubeRay's ports are free.
IN_NAMESPACES = """\
set -e
mount --make-rprivate /
mount --rbind "$root" "$root"
touch "$root/etc/hosts"
mount --bind "$hosts" "$root/etc/hosts"
for path in /dev /sys; do mount --rbind "$path" "$root$path"; done
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
for path in /dev/shm /tmp /work; do mount -t tmpfs -o mode=1777 writable "$root$path"; done
mkdir -p "$root$shared"
mount --bind "$shared" "$root$shared"
ip link set lo up
exec setpriv --no-new-privs chroot --userspec="$user" "$root" env --ignore-environment --chdir="$directory" "$@"
"""
PORTS = "--dashboard-agent-listen-port=52365 --dashboard-host=0.0.0.0 --metrics-export-port=8080"


def manifest() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "configs" / "cluster" / "rayjob.yaml").read_text()))


@dataclass(frozen=True)
class Pod:
    """A pod of the image.

    Args:
        process: Ends it, when killed.
        config: What the image says of users, variables and folders.
        variables: What KubeRay and the manifest set.
        log: What its first command prints.
    """

    process: "subprocess.Popen[bytes]"
    config: dict[str, Any]
    variables: list[str]
    log: Path

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in it, as `kubectl exec` does."""
        (first,) = psutil.Process(self.process.pid).children()
        user, group = self.config["User"].split(":")
        enter = ["nsenter", f"--target={first.pid}", "--mount", "--pid", "--net", "--root"]
        enter += [f"--setuid={user}", f"--setgid={group}", f"--wdns={self.config['WorkingDir']}"]
        return subprocess.run(
            [*enter, "env", "--ignore-environment", *self.variables, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )

    def submit(self, name: str, command: list[str]) -> str:
        """Run voxlift by the entrypoint of the manifest, as KubeRay's submitter does; return its output."""
        entrypoint = manifest()["spec"]["entrypoint"].replace("8265 voxlift;", f"8265 {name};")
        before, rest = re.split(r"voxlift [^;]*;", entrypoint, maxsplit=1)
        words = " ".join(f'"{word}"' for word in command)  # within the single quotes of the entrypoint
        address = "--address http://127.0.0.1:8265"
        submit = f"ray job submit {address} --no-wait --submission-id {name} -- {before}voxlift {words};{rest} ;"
        known = f"if ! ray job status {address} {name} >/dev/null 2>&1 ; then {submit} fi ;"
        done = self.run("/bin/bash", "-ce", "--", f"{known} ray job logs {address} --follow {name}")
        assert done.returncode == 0, done.stdout
        return done.stdout

    def status(self, name: str) -> str:
        """Return what Ray says of a job."""
        return self.run("ray", "job", "status", "--address", "http://127.0.0.1:8265", name).stdout


@pytest.fixture(scope="module")
def image():
    """The image as buildah knows it, and its files."""
    assert shutil.which("buildah"), "buildah is not installed; .ci/image installs it"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    name = f"localhost/voxlift:{version}"
    described = subprocess.run(
        ["buildah", "inspect", "--type=image", name], capture_output=True, text=True, check=False
    )
    assert described.returncode == 0, f"{described.stderr}make image builds it"
    container = _buildah("from", "--pull-never", name)
    try:
        yield json.loads(described.stdout)["OCIv1"]["config"], Path(_buildah("mount", container))
    finally:
        _buildah("rm", container)


def _buildah(*arguments: str) -> str:
    return subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def pod_of(image: tuple[dict[str, Any], Path], folder: Path, *command: str) -> Iterator[Pod]:
    """Run a command as the first one of a pod, until the block ends. It needs root and namespaces."""
    config, files = image
    isolated = ["unshare", "--mount", "--uts", "--pid", "--net", "--fork", "--kill-child"]
    allowed = subprocess.run([*isolated, "hostname", "pod"], capture_output=True, text=True, check=False)
    assert allowed.returncode == 0, f"a pod needs root and mount, UTS, PID and network namespaces: {allowed.stderr}"

    (folder / "hosts").write_text("127.0.0.1 localhost\n")
    token = ["RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN={secrets.token_hex(32)}"]  # of the operator
    variables = [*config["Env"], *token, f"MLFLOW_TRACKING_URI=sqlite:///{folder}/mlflow.db"]
    values = {"root": files, "hosts": folder / "hosts", "shared": folder, "user": config["User"]}
    values["directory"] = config["WorkingDir"]
    assignments = "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in values.items())
    with (folder / "pod.log").open("w") as log:
        words = ["bash", "-c", assignments + IN_NAMESPACES, "-", *variables, *command]
        process = subprocess.Popen([*isolated, *words], stdout=log, stderr=log)
    with ExitStack() as stack:
        stack.callback(process.wait)
        stack.callback(process.kill)
        yield Pod(process, config, variables, folder / "pod.log")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder of the claim, with what jobs need."""
    folder = tmp_path_factory.mktemp("shared")
    SmallUpscaling(folder, volumes=1, shape=(50, 60, 54)).prepare()
    SmallTraining(folder, steps=1500).prepare()
    folder.chmod(0o777)
    return folder


@pytest.fixture(scope="module")
def head(image, shared):
    """A pod that KubeRay's command starts, here with a CPU."""
    start = f"ulimit -n 65536; ray start --head --block {PORTS} --num-cpus=1"
    with pod_of(image, shared, "/bin/bash", "-c", "--", start) as pod:
        until(lambda: "Ray runtime started" in pod.log.read_text(), pod.process)
        yield pod


def test_it_holds_the_package_and_nothing_of_its_making(image):
    config, files = image
    assert config["User"] == "1000:1000"
    assert config["Entrypoint"] == ["voxlift"]
    names = {path.name for path in (files / "opt/voxlift/lib").glob("python3*/site-packages/*")}
    assert {"workflow", "tasks", "models", "configs", "ray"} <= names
    assert not names & {"tests", "pytest", "mypy", "ruff", "hypothesis", "mkdocs"}
    assert not (files / "voxlift").exists()
    assert not list((files / "opt").rglob(".git"))
    size = sum(path.lstat().st_size for path in files.rglob("*") if path.is_file() and not path.is_symlink())
    stated = float(re.findall(r"installed package: ([\d.]+) GB", (ROOT / "Containerfile").read_text())[0])
    assert abs(size / 1e9 - stated) < 0.3


def test_kuberay_finds_it_healthy(head):
    for port, path in ((52365, "api/local_raylet_healthz"), (8265, "api/gcs_healthz")):
        probe = f"wget --tries 1 -T 5 -q -O- http://localhost:{port}/{path} | grep success"
        until(lambda: head.run("bash", "-c", probe).returncode == 0, head.process, every=0.5)  # noqa: B023
    # By newer operators, over HTTP.
    assert head.run("wget", "-q", "-O-", "http://localhost:52365/api/healthz").returncode == 0
    assert head.run("ray", "health-check").returncode == 0
    assert head.run("touch", "/opt/voxlift/new").returncode != 0


def test_a_submitted_upscaling_is_that_of_this_machine(head, shared):
    work = SmallUpscaling(shared, volumes=1, shape=(50, 60, 54))
    log = head.submit("fine", work.command("fine", "--workers", "1"))
    assert "succeeded" in head.status("fine"), log
    assert digests(report_in(log)) == work.run_here("here", "--workers", "1")


def test_wrong_input_stops_the_job(head, shared):
    log = head.submit("wrong", ["upscale", f"{shared}/nothing.nii.gz", "--out", f"{shared}/wrong"])
    assert "stopped" in head.status("wrong"), log


def test_a_training_saves_its_state_before_its_pod_goes(head, shared):
    training = SmallTraining(shared, steps=1500)
    with ThreadPoolExecutor() as pool:
        job = pool.submit(head.submit, "training", training.command("run"))
        client = MlflowClient(training.store)

        def has_taken_steps():
            recorded = shared / "run" / "run.json"
            if not recorded.exists():
                return job.done()
            return "train/loss" in client.get_run(json.loads(recorded.read_text())["run_id"]).data.metrics

        until(has_taken_steps)
        group = manifest()["spec"]["rayClusterSpec"]["headGroupSpec"]
        (container,) = group["template"]["spec"]["containers"]
        done = head.run(*container["lifecycle"]["preStop"]["exec"]["command"])
        assert done.returncode == 0, done.stdout
        log = job.result()
    # KubeRay tries it again.
    assert "failed" in head.status("training"), log
    (checkpoint,) = (shared / "run" / "checkpoints").iterdir()
    assert 0 < int(checkpoint.stem.removeprefix("step-")) < training.steps
