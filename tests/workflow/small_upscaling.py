"""An upscaling in small: a model, volumes of several shards each, and what a run of the command tells of them."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.axes import FileShape
from tasks.volume.grid import Grid
from tasks.volume.nifti import write_volume
from tests.networks import small_restorer

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class SmallUpscaling:
    """A model and volumes in a folder.

    Args:
        folder: Where they are, and where outputs and the MLflow store of `store` go.
        volumes: How many.
        shape: Of each.
    """

    folder: Path
    volumes: int
    shape: tuple[int, int, int]

    def prepare(self) -> "SmallUpscaling":
        small_restorer(filters=6).save(self.folder / "small.keras")
        for number in range(self.volumes):
            voxels = np.random.default_rng(number).gamma(2.0, 300.0, size=self.shape).astype(np.float32)
            grid = Grid(FileShape(*voxels.shape), np.diag([-1.0, 1.2, 2.0, 1.0]))
            write_volume(self.folder / f"scan-{number}.nii.gz", voxels, grid, dtype="int16")
        return self

    @property
    def store(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def command(self, out: str, *options: str) -> list[str]:
        """The arguments of voxlift."""
        inputs = [str(self.folder / f"scan-{number}.nii.gz") for number in range(self.volumes)]
        model = ["--model", str(self.folder / "small.keras"), "--scale", "2,2,2", "--memory-budget", "90"]
        return ["upscale", *inputs, "--out", str(self.folder / out), *model, "--json", *options]

    def run_here(self, out: str, *options: str) -> list[str]:
        """Run the command in a Ray of its own; returns the digest of every output."""
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        done = subprocess.run(
            [sys.executable, "-m", "workflow", *self.command(out, *options)],
            cwd=ROOT,
            env=environment | {"MLFLOW_TRACKING_URI": self.store},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return digests(json.loads(done.stdout))

    def cores(self, out: str) -> int:
        """Shards that are kept in an output folder while volumes are not finished."""
        return len(list((self.folder / out).glob(".voxlift/*/0/[!.]*.core")))

    def outputs(self, out: str) -> int:
        """Finished volumes in an output folder."""
        return len(list((self.folder / out).glob("[!.]*.nii.gz")))


def digests(report: dict) -> list[str]:  # type: ignore[type-arg]
    return [volume["sha256"] for volume in report["volumes"]]


def report_in(log: str) -> dict:  # type: ignore[type-arg]
    """The one JSON object in what a job has printed; after a failure Ray shows the last lines once more."""
    found = set(re.findall(r"^\{$.*?^\}$", log, re.MULTILINE | re.DOTALL))
    assert len(found) == 1, log
    return dict(json.loads(found.pop()))
