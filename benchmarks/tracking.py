"""What recording a run like the demo's costs: `python -m benchmarks.tracking`, in an empty working directory."""

import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

from configs.load import load_config
from tasks.artifact_contract import volume_contract
from tasks.geometry import Grid
from tasks.volumes import write_volume
from workflow.provenance import record_setup
from workflow.tracking import input_volume, recorded_run

GRID = Grid((197, 233, 189), np.eye(4))


def main() -> None:
    config = load_config("demo")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "restored.nii.gz"
        voxels = np.random.default_rng(0).random(GRID.shape, np.float32)
        write_volume(path, voxels, GRID, dtype="float32")
        # The first run makes the store.
        with recorded_run("benchmark", "warm up"):
            pass
        marks = [("", time.perf_counter())]

        def mark(what: str) -> None:
            marks.append((what, time.perf_counter()))

        with recorded_run("benchmark", "demo") as recorder:
            mark("opening")
            record_setup(recorder, config, "demo")
            recorder.inputs([input_volume(path, "reference", record_paths=False)])
            mark("configuration, environment, input")
            for step in range(1, config.training.steps + 1):
                recorder.metrics({"train/loss": 1 / step, "train/learning_rate": 1e-3}, step)
            recorder.flush()
            mark(f"{config.training.steps} steps")
            recorder.volume(path, "volumes", volume_contract(GRID, "float32"), with_header=False)
            mark("a volume of 8.7 million voxels, anonymous, sealed")
        mark("contracts and end")
    for (_, before), (what, after) in pairwise(marks):
        print(f"{after - before:7.2f} s  {what}")
    print(f"{marks[-1][1] - marks[0][1]:7.2f} s  in all")


if __name__ == "__main__":
    main()
