"""Networks and recipes of the restorer under the same budget: `python -m benchmarks.variants [STEPS]`.

Each trains for as many steps on the same seed and is scored on volumes that nothing is trained on: those in the folder
VOXLIFT_DATA or ../shared/data, else a part of the template that the gap keeps apart. Writes `results/variants.json` and
`results/variants.md`. Seconds of processor time, not of the clock, so that what else the machine does counts less.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
STEPS = 300


def stages(*filters_and_strides: tuple[int, tuple[int, int, int]]) -> str:
    """A list of stages as an override, kernels twice the strides."""
    listed = [
        f"{{filters: {filters}, kernel_size: [{', '.join(str(2 * s if s > 1 else 3) for s in strides)}],"
        f" strides: [{', '.join(map(str, strides))}]}}"
        for filters, strides in filters_and_strides
    ]
    return f"network.stages=[{', '.join(listed)}]"


PLANE, ALL = (1, 2, 2), (2, 2, 2)
COARSE_AT_ONCE = ((32, PLANE), (32, ALL), (24, ALL), (1, ALL))
PLANE_FIRST = ((32, ALL), (32, ALL), (24, ALL), (1, PLANE))
WIDE = stages((32, PLANE), (48, ALL), (32, ALL), (1, ALL))
CONCATENATED = "network.skip=concatenate"
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "iso2x: default, coarse grid at once, 32-32-24": ("iso2x", ()),
    "plane first, 32-32-24": ("iso2x", (stages(*PLANE_FIRST),)),
    "plane first, 32-32-24, concatenated skips": ("iso2x", (stages(*PLANE_FIRST), CONCATENATED)),
    "three stages 32-24": ("iso2x", (stages((32, ALL), (24, ALL), (1, (2, 4, 4))), "network.convolutions=[0, 1, 1]")),
    "a convolution at every level": ("iso2x", ("network.convolutions=1",)),
    "no convolution but the strided": ("iso2x", ("network.convolutions=0",)),
    "narrow, 32-32-16": ("iso2x", (stages((32, PLANE), (32, ALL), (16, ALL), (1, ALL)),)),
    "wide, 32-48-32": ("iso2x", (WIDE,)),
    "concatenated skips": ("iso2x", (CONCATENATED,)),
    "ReLU": ("iso2x", ("network.activation=relu",)),
    "L1 alone": ("iso2x", ("training.losses={l1: 1}",)),
    "the template alone": ("iso2x", ("data.mixture={volumes: 1}",)),
    "thick4x: default, slices at once": ("thick4x", ()),
    "default of iso2x": ("thick4x", (stages(*COARSE_AT_ONCE),)),
}


def train_and_score(preset: str, overrides: list[str]) -> dict[str, Any]:
    """Train one variant in this process and score it."""
    import numpy as np

    from benchmarks.one_pass import one_pass
    from configs.load import load_config
    from tasks.artifacts.network_file import read_network
    from tasks.artifacts.saved_models import load_model
    from tasks.scoring.protocol import WHOLE, degraded_reference, held_out_slabs
    from tasks.training.job import TrainedModel, TrainingJob
    from tasks.training.start import run_training
    from tasks.training.template import template_path
    from tasks.volume.nifti import read_volume
    from workflow.train.data import training_volumes

    folder = Path(os.environ.get("VOXLIFT_DATA", RESULTS.parents[2] / "shared" / "data"))
    unseen = [path for path in (folder / "MR_Gd.nii.gz", folder / "FLAIR.nii.gz") if path.is_file()]
    if not unseen:
        overrides = [*overrides, "data.held_out={axis: 1, start: 0.6667, stop: 1.0, gap: 16}"]
    config = load_config(preset, overrides)
    place = Path(tempfile.mkdtemp()) / "model.keras"
    spent = time.process_time()
    for record in run_training(TrainingJob(config, training_volumes(config), place)):
        if isinstance(record, TrainedModel):
            trained = record
    spent = time.process_time() - spent
    network = read_network(place)
    restore = one_pass(load_model(place), config.network.total_stride)
    row: dict[str, Any] = {
        "weights": trained.parameters,
        "multiply-adds per voxel": network.cost.multiply_adds(config.network.total_stride)
        // int(np.prod(config.network.total_stride)),
        "reach, depth and plane": ", ".join(f"{a}+{b}" for a, b in (axis.halo for axis in network.cost.field.axes[:2])),
        "processor ms a step": round(1000 * spent / trained.steps),
    }
    for path in unseen or [template_path()]:
        reference = read_volume(path)
        degraded = degraded_reference(reference, config.degradation)
        slab = WHOLE if unseen else held_out_slabs(reference.grid.shape, config.data.held_out)[1]
        restored = restore(degraded)
        corrected = degraded.corrected(restored).voxels
        for title, volume in (("network", restored), ("corrected", corrected)):
            score = degraded.scores(degraded.cropped(volume), slab).psnr
            row[f"{path.name.split('.')[0]} {title}"] = round(score.restored - score.cubic, 2)
    return row


def main(steps: int) -> None:
    rows = []
    for name, (preset, overrides) in VARIANTS.items():
        settings = [*overrides, f"training.steps={steps}"]
        ran = subprocess.run(
            [sys.executable, "-m", "benchmarks.variants", "--one", preset, *settings],
            capture_output=True,
            text=True,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
            check=True,
        )
        rows.append({"variant": name, **json.loads(ran.stdout.splitlines()[-1])})
        print(rows[-1], flush=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [
        f"# {steps} steps each; dB over cubic",
        "",
        f"Made by `python -m benchmarks.variants {steps}`.",
        "",
        f"| {' | '.join(columns)} |",
        f"|{' --- |' * len(columns)}",
        *(f"| {' | '.join(str(row.get(column, '')) for column in columns)} |" for row in rows),
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "variants.json").write_text(json.dumps({"steps": steps, "variants": rows}, indent=2) + "\n")
    (RESULTS / "variants.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if "--one" in sys.argv:
        print(json.dumps(train_and_score(sys.argv[2], sys.argv[3:])))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else STEPS)
