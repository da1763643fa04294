"""Search for volumes where a model does harm: `python -m benchmarks.robustness [MODEL.keras ...]`.

Each model restores what its card's degradation leaves of volumes unlike those that trained it: other contrasts, other
spacings, noise, a CT-like phantom, all made from the template, and the scans in the folder VOXLIFT_DATA or
../shared/data. Without a model the presets iso2x and thick4x are trained first, in about six minutes. Writes
`results/robustness.json` and `.md`; ends with status 1 if any volume is worse than cubic by more than 0.1 dB.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_fill_holes, gaussian_filter

from benchmarks.one_pass import one_pass
from configs.axes import FileShape
from configs.load import load_config
from tasks.artifacts.network_file import read_network
from tasks.artifacts.saved_models import load_model
from tasks.imaging.resample import resample
from tasks.scoring.protocol import degraded_reference
from tasks.training.job import TrainingJob
from tasks.training.start import run_training
from tasks.training.template import template_path
from tasks.volume.grid import Grid, spaced_grid
from tasks.volume.intensity import find_intensity, normalise
from tasks.volume.nifti import Volume, open_volume, read_volume
from workflow.train.data import training_volumes

RESULTS = Path(__file__).parent / "results"
SCANS = ("MR_Gd", "FLAIR", "chris_PD", "CT_pitch", "pcasl")
PIECE = (128, 160, 128)  # voxels of the template, around its middle
LEAST = -0.1  # dB over cubic

Voxels = NDArray[np.float32]


def phantoms() -> Iterator[tuple[str, Volume]]:
    """Volumes made from the template and its tissue maps."""
    template = read_volume(template_path("t1"))
    t1 = _middle(normalise(template.voxels, find_intensity(template.voxels)))
    grey, white = (_middle(m / m.max()) for m in (read_volume(template_path(kind)).voxels for kind in ("gm", "wm")))
    head = binary_fill_holes(t1 > 0.08)
    brain = gaussian_filter(grey + white, 1) > 0.3
    fluid = np.clip(binary_fill_holes(brain) - grey - white, 0, 1)
    random = np.random.default_rng(0)
    one_mm = Grid(FileShape(*t1.shape), np.eye(4))

    yield "T1", Volume(100 * t1, one_mm)
    yield "T1 inverted", Volume(100 * np.where(head, t1.max() - t1, 0).astype(np.float32), one_mm)
    t2 = np.where(brain, 0.95 * fluid + 0.55 * grey + 0.35 * white, 0.4 * t1)
    yield "synthetic T2", Volume(800 * t2.astype(np.float32), one_mm)
    noisy = np.hypot(t1 + 0.03 * random.standard_normal(t1.shape), 0.03 * random.standard_normal(t1.shape))
    yield "T1 with noise of 3 %", Volume(100 * noisy.astype(np.float32), one_mm)
    skull = binary_dilation(brain, iterations=8) & ~binary_dilation(brain, iterations=3) & head
    hounsfield = np.select([brain, skull, head], [25 + 15 * grey + 5 * fluid, 1000.0, -60 + 100 * t1], -1000.0)
    ct = gaussian_filter(hounsfield, 0.5) + 6 * random.standard_normal(t1.shape)
    yield "CT-like", Volume(ct.astype(np.float32), one_mm)
    for spacing in ((0.7, 0.7, 0.7), (1.5, 1.5, 1.5), (1.0, 1.0, 2.5)):
        grid = spaced_grid(one_mm, spacing)
        blurred = gaussian_filter(t1, [0.42 * max(0.0, step - 1) for step in spacing])
        yield f"T1 at {'x'.join(map(str, spacing))} mm", Volume(100 * resample(blurred, grid.shape), grid)


def scans() -> Iterator[tuple[str, Volume]]:
    """Real volumes that nothing is trained on; of a series the first time point."""
    folder = Path(os.environ.get("VOXLIFT_DATA", RESULTS.parents[2] / "shared" / "data"))
    for name in SCANS:
        path = folder / f"{name}.nii.gz"
        if path.is_file():
            yield name, open_volume(path).read()


def scored(path: Path) -> list[dict[str, Any]]:
    """Score a model on every volume."""
    card = read_network(path).card
    if card is None:
        raise SystemExit(f"{path.name} carries no card: name a model trained by voxlift")
    recipe, restore = card.degradation, one_pass(load_model(path), card.network.total_stride)
    rows = []
    for name, volume in (*phantoms(), *scans()):
        degraded = degraded_reference(volume, recipe)
        restored = degraded.cropped(degraded.corrected(restore(degraded)).voxels)
        scores = degraded.scores(restored)
        remarks = card.warnings(recipe.scale, degraded.axes.of_file(volume.grid.spacing))
        rows.append(
            {
                "degradation": recipe.name,
                "volume": name,
                "trilinear [dB]": round(scores.psnr.trilinear, 2),
                "cubic [dB]": round(scores.psnr.cubic, 2),
                "over cubic [dB]": round(scores.psnr.restored - scores.psnr.cubic, 2),
                "SSIM over cubic": round(scores.ssim.restored - scores.ssim.cubic, 4),
                "the tool warns": "; ".join(remarks),
            }
        )
        print(rows[-1], flush=True)
    return rows


def trained(preset: str, folder: Path) -> Path:
    """Train a preset in this process."""
    config, path = load_config(preset), folder / f"{preset}.keras"
    for _ in run_training(TrainingJob(config, training_volumes(config), path)):
        pass
    return path


def _middle(voxels: Voxels) -> Voxels:
    starts = [(size - piece) // 2 for size, piece in zip(voxels.shape, PIECE, strict=True)]
    return voxels[tuple(slice(start, start + size) for start, size in zip(starts, PIECE, strict=True))]


def main(models: list[Path]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        models = models or [trained(preset, Path(folder)) for preset in ("iso2x", "thick4x")]
        rows = [row for model in models for row in scored(model)]
    lines = [
        "# Next to cubic, on volumes unlike those that trained",
        "",
        "Made by `python -m benchmarks.robustness`.",
        "",
        f"| {' | '.join(rows[0])} |",
        f"|{' --- |' * len(rows[0])}",
        *(f"| {' | '.join(map(str, row.values()))} |" for row in rows),
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "robustness.json").write_text(json.dumps(rows, indent=2) + "\n")
    (RESULTS / "robustness.md").write_text("\n".join(lines) + "\n")
    worse = [f"{row['volume']} ({row['degradation']})" for row in rows if row["over cubic [dB]"] < LEAST]
    if worse:
        raise SystemExit(f"worse than cubic by more than {-LEAST} dB: {', '.join(worse)}")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
