"""The files under configs/cluster/, checked as far as that goes without the systems that read them."""

import inspect
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest
import typer
import yaml
from pydantic import ValidationError
from ray.autoscaler._private import commands
from ray.autoscaler._private.docker import docker_start_cmds
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.dashboard.modules.dashboard_sdk import parse_runtime_env_args
from ray.runtime_env import RuntimeEnv
from ray.scripts.scripts import start
from typer.core import TyperGroup

from configs.load import load_config
from tests.processes import end
from tests.workflow.kuberay import RayJob
from workflow.cli import app

ROOT = Path(__file__).parents[2]
FILES = ROOT / "configs" / "cluster"
GIB = 2**30


def voxlift(command):
    """Parse, as our command line does, `voxlift COMMAND …`; an option that it does not know is an error."""
    program, name, *arguments = shlex.split(command)
    assert program == "voxlift"
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    found = group.get_command(group.make_context(program, [name]), name)
    assert found is not None
    return found.make_context(name, arguments)


def ray_start(command):
    """Parse options as `ray start` does; one that it does not know is an error."""
    options = shlex.split(command.partition("ray start ")[2].partition(" < ")[0])
    return start.make_context("start", options).params


def read(name):
    return yaml.safe_load((FILES / name).read_text())


def test_the_cluster_file_is_one_that_ray_takes():
    config = prepare_config(read("ray-cluster.yaml"))
    validate_config(config)  # against Ray's own schema
    assert config["available_node_types"][config["head_node_type"]]["max_workers"] == 2
    head, worker = (
        config[f"{role}_start_ray_commands"][-1].replace("$RAY_HEAD_IP", "192.0.2.1") for role in ("head", "worker")
    )
    assert ray_start(head)["dashboard_host"] == "127.0.0.1"
    assert ray_start(worker)["address"] == f"192.0.2.1:{ray_start(head)['port']}"
    # `ray up` itself reads it, where it chooses the autoscaler.
    switch = "RAY_UP_enable_autoscaler_v2"
    assert f'os.getenv("{switch}"' in inspect.getsource(commands)
    assert f"export {switch}=0" in (FILES / "ray-cluster.yaml").read_text()


def test_the_cluster_file_starts_ray_in_the_image(tmp_path):
    """As Ray's launcher builds its commands; docker itself is not asked."""
    config, project = prepare_config(read("ray-cluster.yaml")), tomllib.loads((ROOT / "pyproject.toml").read_text())
    docker = config["docker"]
    assert docker["image"] == f"voxlift:{project['project']['version']}"
    assert all(docker["image"] in command for command in config["initialization_commands"])
    home = dict(re.findall(r"(\w+)=(\S+)", next(rest for name, rest in instructions() if name == "ENV")))["HOME"]
    options = docker["run_options"], config["cluster_name"], home
    command = docker_start_cmds("voxlift", docker["image"], config["file_mounts"], "voxlift", *options, "docker")
    # With `docker` as a program that shows what it receives.
    (tmp_path / "docker").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"")
    (tmp_path / "docker").chmod(0o755)
    for example in re.findall(r"'RAY_ADDRESS=(\S+) (voxlift .*)'", (FILES / "ray-cluster.yaml").read_text()):
        assert example[0] == f"{config['provider']['head_ip']}:6379"
        assert voxlift(example[1]).info_name == "upscale"
    path = f"{tmp_path}:{os.environ['PATH']}"
    run = subprocess.run(["bash", "-c", command], env={"PATH": path}, capture_output=True, text=True, check=True)
    received = run.stdout.splitlines()
    assert received[-2:] == [docker["image"], "bash"]
    user = f"--user={os.getuid()}:{os.getgid()}"
    assert {"--entrypoint=", user, "--volume=/shared:/shared", "--env=RAY_AUTH_MODE=token"} <= set(received)
    assert any(one.endswith(f":{home}/.ray/auth_token") for one in received)
    # The image has what the launcher calls in it, and a login shell finds Ray.
    last = [rest for name, rest in instructions() if name == "RUN"][-1]
    assert {"openssh-client", "rsync"} <= set(last.split())
    assert "> /etc/profile.d/voxlift.sh" in last


def instructions():
    """The instructions of the Containerfile: (name, the rest of the line)."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", (ROOT / "Containerfile").read_text(), flags=re.MULTILINE))
    return [tuple(line.split(None, 1)) for line in lines.splitlines() if line.strip()]


def test_the_image_is_made_of_the_package_alone():
    found = instructions()
    assert {name for name, _ in found} <= {"ARG", "FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
    (install,) = (rest for name, rest in found if name == "RUN" and "pip install" in rest)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (wanted,) = re.findall(r"/voxlift\[([^]]*)\]", install)
    extras = wanted.replace(
        "${EXTRA}", dict(rest.partition("=")[::2] for name, rest in found if name == "ARG")["EXTRA"]
    )
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])
    assert "--constraint /voxlift/constraints.txt" in install
    assert json.loads(dict(found)["ENTRYPOINT"]) == list(project["project"]["scripts"])
    # All that the package is built from goes in, and nothing else.
    first, *let_in = (line for line in (ROOT / ".containerignore").read_text().splitlines() if not line.startswith("#"))
    assert first == "*"
    packages = {name.removesuffix("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    modules = {f"{name}.py" for name in project["tool"]["setuptools"]["py-modules"]}
    files = {"pyproject.toml", "constraints.txt", project["project"]["readme"], *project["project"]["license-files"]}
    assert {line.removeprefix("!") for line in let_in if line.startswith("!")} == packages | modules | files
    assert (ROOT / ".dockerignore").resolve() == ROOT / ".containerignore"


@pytest.fixture(scope="module")
def ray_job():
    return read("rayjob.yaml")


def groups(ray_job):
    cluster = ray_job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def command_of(ray_job):
    """The voxlift command within the entrypoint."""
    shell, option, script = shlex.split(ray_job["spec"]["entrypoint"])
    assert (shell, option) == ("sh", "-c")
    return script.partition(";")[0]


def test_the_ray_job_is_one_that_kuberay_knows(ray_job):
    RayJob.model_validate(ray_job)
    cluster = ray_job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    assert yaml.safe_load(ray_job["spec"]["runtimeEnvYAML"])["env_vars"] == read("runtime-env.yaml")["env_vars"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for group in groups(ray_job):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        ray_start("ray start " + " ".join(f"--{name}={value}" for name, value in group["rayStartParams"].items()))
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == f"voxlift:{project['version']}"
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        writable = {"/shared": "shared", "/dev/shm": "memory", "/tmp": "temporary", "/work": "working"}  # noqa: S108
        assert mounts == writable
        assert {volume["name"] for volume in pod["volumes"]} == set(mounts.values())
    for pod in [ray_job["spec"]["submitterPodTemplate"], *(group["template"] for group in groups(ray_job))]:
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert all(one["securityContext"]["readOnlyRootFilesystem"] for one in pod["spec"]["containers"])


def test_lines_of_the_ray_job_that_are_switched_off_can_be_switched_on(ray_job):
    text = re.sub(r"^( *)#(?=\S)", r"\1", (FILES / "rayjob.yaml").read_text(), flags=re.MULTILINE)
    switched_on = yaml.safe_load(text)
    RayJob.model_validate(switched_on)
    pod = groups(switched_on)[1]["template"]["spec"]
    assert {"nodeSelector", "tolerations", "imagePullSecrets"} <= pod.keys() - groups(ray_job)[1]["template"][
        "spec"
    ].keys()
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("backoffLimit: 2", "backofLimit: 2"),
        ("backoffLimit: 2", 'backoffLimit: "2"'),
        ("generateName: voxlift-", "generateName: Voxlift-"),
        ('num-cpus: "0"', "num-cpus: 0"),
        ("readOnlyRootFilesystem: true", "readonlyRootFilesystem: true"),
        ("shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false"),
        ("memory: 32Gi", "memory: 32 GB"),
        ("replicas: 1", "replicas: 2"),
        ("optional: true", "required: false"),
    ],
)
def test_a_slip_in_a_field_is_found(right, wrong):
    text = (FILES / "rayjob.yaml").read_text()
    assert right in text
    with pytest.raises(ValidationError):
        RayJob.model_validate(yaml.safe_load(text.replace(right, wrong, 1)))


def test_before_its_pod_goes_the_command_is_ended_politely(ray_job):
    head, workers = groups(ray_job)
    (container,) = head["template"]["spec"]["containers"]
    program, *arguments = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "python"
    command = subprocess.Popen(["/opt/voxlift/bin/voxlift", "300"], executable=shutil.which("sleep"))
    reaped = threading.Thread(target=command.wait)  # as the shell of the entrypoint does
    reaped.start()
    try:
        subprocess.run([sys.executable, *arguments], check=True)
        reaped.join(timeout=60)
        assert command.returncode == -signal.SIGTERM
    finally:
        end(command)
    # Longer than a command needs to save, within the time that Kubernetes gives.
    wait = json.loads(re.findall(r"timeout=(\d+)", arguments[-1])[0])
    assert workers["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == [
        "sleep",
        str(wait),
    ]
    assert all(20 < wait < group["template"]["spec"]["terminationGracePeriodSeconds"] for group in (head, workers))


def test_the_pods_of_the_ray_job_hold_its_command(ray_job):
    # As Ray's autoscaler reads the resources of pods.
    resource = {"metadata": {"name": "voxlift", "namespace": "default"}, "spec": ray_job["spec"]["rayClusterSpec"]}
    config = _derive_autoscaling_config_from_ray_cr(resource)
    pod = config["available_node_types"]["workers"]["resources"]

    train = voxlift(command_of(ray_job))
    asked = load_config(train.params["config"], train.params["overrides"]).resources
    assert asked.workers * asked.cpus_per_worker <= pod["CPU"]
    assert train.params["out"].is_relative_to("/shared")
    assert train.params["resume"]

    comments = (FILES / "rayjob.yaml").read_text().replace("\n  #", "\n")
    upscale = voxlift(re.findall(r"^ *(voxlift upscale .*)$", comments, re.MULTILINE)[0]).params
    workers, pods = int(upscale["workers"]), config["max_workers"]
    assert workers * upscale["cpus_per_worker"] <= pods * pod["CPU"]
    # A worker has its budget beyond an idle one, which takes less than 1 GiB; a third goes to Ray and the object store.
    budget = upscale["memory_budget"] or 2000  # without GPUs
    assert workers * (budget * 2**20 + GIB) <= pods * pod["memory"] * 2 / 3
    for path in (*upscale["volumes"], upscale["out"], upscale["model"]):
        assert Path(path).is_relative_to("/shared")


def test_only_what_a_job_needs_is_uploaded(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    tree = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", ".*", "runs", "mlruns", "mlflow.db", "*.egg-info")
    shutil.copytree(ROOT, tree, ignore=ignored)
    shutil.copy(ROOT / ".gitignore", tree)
    private = ("runs/one/model.keras", "scans/sub-01_T1w.nii.gz", "patient.mgz", "mlflow.db", "models/old.keras")
    for name in (*private, ".venv/bin/python", ".git/config", "tasks/__pycache__/train.pyc"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("not for others")

    environment = parse_runtime_env_args(runtime_env=str(FILES / "runtime-env.yaml"), working_dir=str(tree))
    RuntimeEnv(**environment)  # refuses what Ray does not know
    from ray._private.ray_constants import get_runtime_env_default_excludes

    excludes = get_runtime_env_default_excludes() + environment["excludes"]
    create_package(str(tree), tmp_path / "package.zip", include_gitignore=True, excludes=excludes)
    with ZipFile(tmp_path / "package.zip") as package:
        sent = {name for name in package.namelist() if not name.endswith("/")}
        code_entries = [one for one in package.infolist() if not one.filename.startswith("models/weights/")]
        size = sum(entry.compress_size for entry in code_entries)
    packages = ("configs", "models", "tasks", "workflow")
    code = {path.relative_to(tree).as_posix() for name in packages for path in (tree / name).rglob("*.*")}
    assert code - {"models/old.keras", "tasks/__pycache__/train.pyc"} <= sent
    assert {name.split("/")[0] for name in sent if "/" in name} == set(packages)
    assert not sent & {*private, "tasks/__pycache__/train.pyc"}
    assert size < 4 * 2**20


def directives(script):
    """The options in the file, which end where its commands begin."""
    head = itertools.takewhile(lambda line: not line or line.startswith("#"), script.read_text().splitlines())
    return [option for line in head if line.startswith("#SBATCH ") for option in line.split()[1:]]


def test_the_slurm_script_is_bash_and_its_examples_are_commands():
    script = FILES / "voxlift.slurm"
    subprocess.run(["bash", "-n", script], check=True)
    options = dict(option.removeprefix("--").partition("=")[::2] for option in directives(script))
    assert options["ntasks-per-node"] == "1"
    lead = int(options["signal"].removeprefix("B:USR1@"))
    assert lead >= 60  # SLURM may be late by as much as it checks rarely
    text = script.read_text().replace("\\\n#", "")
    examples = re.findall(r"^# +sbatch (.*?) configs/cluster/voxlift\.slurm (.*)$", text, re.MULTILINE)
    parsed = [voxlift(f"voxlift {command}") for _, command in examples]
    assert [command.info_name for command in parsed] == ["train", "upscale", "sweep", "upscale"]
    for (given, _), command in zip(examples, parsed, strict=True):
        nodes = int(dict(option.split("=") for option in given.split())["--nodes"])
        assert command.params["resume"]
        if command.info_name == "upscale":
            asked = int(command.params["workers"]) * command.params["cpus_per_worker"]
            assert asked <= nodes * int(options["cpus-per-task"])


@pytest.mark.parametrize("name", sorted(path.name for path in FILES.iterdir()))
def test_each_file_says_what_it_is_for(name):
    first = (FILES / name).read_text().removeprefix("#!/usr/bin/env bash\n").splitlines()[0]
    assert re.match(r"# (A|What) ", first)
