"""Adaptation to a scan: `python -m benchmarks.adaptation`, `voxlift upscale` with and without `--adapt`.

MR_Gd and FLAIR, from the folder VOXLIFT_DATA or ../shared/data, are made into slices 4 times as thick, without noise
and with Rician noise of 3 %, written as NIfTI, and restored with nothing given by the shipped weights: as they are, and
adapted to the thick slices alone. PSNR stands next to cubic interpolation. Writes `results/adaptation.md` and the same
as JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image

from benchmarks.robustness import MATRICES, RESULTS, processor, scans
from configs.axes import NetworkShape
from configs.degradation import Noise, named_degradation
from tasks.imaging.degrade import degrade
from tasks.imaging.resample import resample
from tasks.scoring.metrics import foreground_mask, psnr

VOLUMES, NOISE = ("MR_Gd", "FLAIR"), (0.0, 0.03)
FACTOR = 4
ROOT = Path(__file__).parents[1]
Row = dict[str, Any]


def scored(name: str, fine: np.ndarray, sigma: float, folder: Path) -> Row:
    """Restore one volume, normalised `[depth, height, width]`, with and without adaptation."""
    recipe = named_degradation("thick4x").model_copy(update={"noise": Noise(kind="rician", sigma=sigma)})
    coarse, mask = degrade(fine, recipe, 1), foreground_mask(fine)
    source = folder / f"{name}.nii.gz"
    nib.save(Nifti1Image(coarse.T, np.diag([1.0, 1.0, FACTOR, 1.0])), source)
    base = psnr(fine, resample(coarse, NetworkShape(*fine.shape)), mask)
    row: Row = {"volume": name, "noise": sigma, "cubic [dB]": round(base, 2)}
    for title, options in (("as shipped", ()), ("adapted", ("--adapt",))):
        report, restored = upscaled(source, folder / title.replace(" ", "-"), *options)
        row |= {title: round(psnr(fine, restored, mask) - base, 2)}
    outcome = report["adaptation"]
    held_out = {
        f"held-out slices, {when} [dB]": round(outcome[key], 2)
        for when, key in (("before", "psnr_before"), ("after", "psnr"))
    }
    return row | held_out | {"taken": "yes" if report["adapted_model"] else "no"}


def upscaled(source: Path, out: Path, *options: str) -> tuple[Row, np.ndarray]:
    """Run the command; its report and the output, `[depth, height, width]`."""
    command = [sys.executable, "-m", "workflow", "upscale", source, "--out", out, "--scale", f"1,1,{FACTOR}", "--no-qc"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{out.parent / 'mlflow.db'}"}
    done = subprocess.run(
        [*map(str, command), "--json", "--overwrite", *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stdout)
    report: Row = json.loads(done.stdout)
    (volume,) = report["volumes"]
    return report, np.asarray(nib.load(volume["output"]).dataobj, np.float32).T


def main() -> None:
    rows = []
    for name, fine, _ in scans(MATRICES["thick"], VOLUMES):
        for sigma in NOISE:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(scored(name, fine, sigma, Path(folder)))
            print(rows[-1], flush=True)
    lines = [
        "# Adapting the shipped weights to a scan",
        "",
        f"Made by `python -m benchmarks.adaptation` on {processor()}. Slices {FACTOR} times as thick, nothing given."
        " Gains in dB over cubic.",
        "",
        f"| {' | '.join(rows[0])} |",
        f"|{' --- |' * len(rows[0])}",
        *(f"| {' | '.join(map(str, row.values()))} |" for row in rows),
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "adaptation.json").write_text(json.dumps(rows, indent=2) + "\n")
    (RESULTS / "adaptation.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
