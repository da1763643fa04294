"""Provenance of a run: configuration, code, versions and hardware, without paths or names of persons."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from configs.load import flatten, resolved_yaml
from configs.schema import RunConfig
from tasks.artifacts.network_file import NetworkFile
from tasks.machine.versions import installed_versions
from workflow.tracking import Recorder

ROOT = Path(__file__).parents[2]
PACKAGES = ("keras", "mlflow", "nibabel", "numpy", "ray", "scipy", "tensorflow", "tensorflow-cpu", "voxlift")
ENVIRONMENT = "environment.json"
NOT_RECORDED = "not-recorded"
# Set for a job on a cluster where the code was uploaded without its repository: `git describe --always --dirty`.
COMMIT = "VOXLIFT_COMMIT"


def record_setup(recorder: Recorder, config: RunConfig, command: str) -> None:
    """Record the configuration, as parameters and as `config.yaml`, and the environment of a command of voxlift.

    Paths are left out unless the configuration allows them.
    """
    shown = config if config.tracking.record_paths else without_paths(config)
    recorder.parameters(flatten(shown))
    tags = {"degradation": config.degradation.name, "seed": str(config.training.seed)}
    with recorder.together():
        recorder.text(resolved_yaml(shown), "config.yaml")
        record_environment(recorder, command, tags)


def record_environment(recorder: Recorder, command: str, tags: Mapping[str, str] | None = None) -> None:
    """Record the code, the versions and the hardware of a run, and more tags."""
    code, machine = code_state(), hardware()
    versions = {"python": platform.python_version(), **installed_versions(*PACKAGES)}
    recorder.tags(
        {
            "mlflow.source.name": f"voxlift {command}",
            "mlflow.source.type": "LOCAL",
            "command": command,
            "code.dirty": code["dirty"],
            "hardware.cpu": machine["cpu"],
            "hardware.gpus": ", ".join(machine["gpus"]) or "none",
            **({"mlflow.source.git.commit": code["commit"]} if code["commit"] != "unknown" else {}),
            **(tags or {}),
        }
    )
    recorder.text(json.dumps({"code": code, "versions": versions, "hardware": machine}, indent=1), ENVIRONMENT)


def record_network(recorder: Recorder, network: NetworkFile) -> None:
    """Record which network restores: its digest, its size and, where it carries one, its card."""
    recorder.parameters({"model.sha256": network.digest})
    recorder.uses(network.digest)
    if network.card is not None:
        recorder.metrics({"model/parameters": network.card.parameters})
        recorder.text(network.card.markdown(), "model_card.md")


def without_paths(config: RunConfig) -> RunConfig:
    """Return the configuration with each path replaced by its kind of file: paths name users and patients.

    >>> given = RunConfig(degradation="iso2x", data={"volumes": ["/home/jane/sub-01_T1w.nii.gz"]})
    >>> [str(path) for path in without_paths(given).data.volumes]
    ['not-recorded.nii.gz']
    """

    def shown(value: object) -> object:
        if isinstance(value, Path):
            return Path(NOT_RECORDED + "".join(value.suffixes[-2:] if value.suffix == ".gz" else value.suffixes[-1:]))
        if isinstance(value, Mapping):
            return {key: shown(inner) for key, inner in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [shown(inner) for inner in value]
        return value

    return RunConfig.model_validate(shown(config.model_dump()))


@cache
def code_state() -> dict[str, str]:
    """Return the git commit and whether the tree differs from it; outside a repository, by VOXLIFT_COMMIT."""

    def git(*arguments: str) -> str:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", str(ROOT), *arguments],  # noqa: S607 - whichever git there is
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        return done.stdout.strip()

    try:
        # A tree that was copied into another repository is not that repository.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT.resolve():
            raise FileNotFoundError
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {"commit": git("rev-parse", "HEAD"), "dirty": "yes" if dirty else "no"}
    except (OSError, subprocess.SubprocessError):
        reported = os.environ.get(COMMIT, "")
        if not reported:
            return {"commit": "unknown", "dirty": "unknown"}
        return {"commit": reported.removesuffix("-dirty"), "dirty": "yes" if reported.endswith("-dirty") else "no"}


def hardware() -> dict[str, Any]:
    """Return processor, threads, memory and GPUs, without the machine's name."""
    names = _values(Path("/proc/cpuinfo"), "model name")
    drivers = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return {
        "cpu": names[0] if names else platform.machine(),
        "threads": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [name for file in drivers for name in _values(file, "Model")],
        "system": f"{platform.system()} {platform.release()}",
    }


def _values(path: Path, key: str) -> list[str]:
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(key)]
