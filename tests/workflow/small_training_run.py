"""A training in small: a volume, and the command that trains on it, so many steps without a checkpoint on the way."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from configs.axes import FileShape
from tasks.volume.grid import Grid
from tasks.volume.nifti import write_volume
from tests.tasks.small_training import SMALL, volume
from tests.workflow.small_upscaling import ROOT


@dataclass(frozen=True)
class SmallTraining:
    """A volume in a folder.

    Args:
        folder: Where it is, and where outputs and the MLflow store of `store` go.
        steps: How many a training takes.
    """

    folder: Path
    steps: int

    def prepare(self) -> "SmallTraining":
        write_volume(self.folder / "scan.nii.gz", volume(), Grid(FileShape(48, 48, 48), np.eye(4)))
        return self

    @property
    def store(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def command(self, out: str, *options: str) -> list[str]:
        """The arguments of voxlift."""
        rules = [*SMALL, f"data.volumes=[{self.folder / 'scan.nii.gz'}]", "data.held_out=null", "resources.workers=1"]
        # What a stopped training goes on from is what it left when it was stopped.
        rules += [f"training.steps={self.steps}", f"training.checkpoints.every={2 * self.steps}"]
        return [
            "train",
            "demo",
            "--out",
            str(self.folder / out),
            "--json",
            *(f"--set={rule}" for rule in rules),
            *options,
        ]

    def run_here(self) -> dict[str, Any]:
        """Run the command in a Ray of its own; return its report."""
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        done = subprocess.run(
            [sys.executable, "-m", "workflow", *self.command("here")],
            cwd=ROOT,
            env=environment | {"MLFLOW_TRACKING_URI": self.store},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


def require_same_weights(report: dict[str, Any], other: dict[str, Any]) -> None:
    mine, theirs = (keras.saving.load_model(one["model"], compile=False).get_weights() for one in (report, other))
    for one, another in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(one, another)
    assert report["final_loss"] == other["final_loss"]
