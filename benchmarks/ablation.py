"""Parts of the restoration, and other ways to go by the acquisition: `python -m benchmarks.ablation [PART …]`.

- 2x, thick: the shipped weights for all acquisitions next to the experts, without the correction of their output, as an
  ensemble, and applied twice with the correction between the two.
- trained: networks trained for 1500 steps each from the same seed: one that is conditioned on the acquisition by its
  input, as the shipped one, one that takes the interpolated scan as it is, and an expert for each acquisition.
- capacity: experts as those, wider, and trained for twice as many steps.

All by default. The acquisition is known throughout. The volumes are MR_Gd and FLAIR of the folder VOXLIFT_DATA or
../shared/data, on which nothing is trained. Writes `results/ablation.json` and `results/ablation.md`; what was found
before of other parts stays.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.robustness import MATRICES, RESULTS, Matrix, Restoration, Voxels, processor, scans, shipped_expert
from benchmarks.variants import WIDE
from configs.axes import NetworkShape
from configs.degradation import Degradation, Noise
from configs.load import load_config
from tasks.artifacts.network_file import NetworkFile, read_network
from tasks.artifacts.shipped import shipped_network
from tasks.imaging.consistency import consistent_interpolation, correct, noise_level
from tasks.imaging.degrade import degrade
from tasks.imaging.resample import resample
from tasks.scoring.metrics import foreground_mask, psnr
from tasks.training.job import TrainingJob
from tasks.training.start import run_training
from workflow.train.data import training_volumes

STEPS = 1500
ACQUISITIONS = {"k-space": "kspace2x", "box": "box2x", "FWHM 2": "iso2x"}
MATRIX = Matrix({name: MATRICES["2x"].recipes[name] for name in ACQUISITIONS}, (0.0, 0.02), (2, 2, 2))
THICK = Matrix(
    {name: MATRICES["thick"].recipes[name] for name in ("box, 3x", "box, 4x", "box, 6x")}, (0.0, 0.03), (12, 1, 1)
)

Estimate = Callable[[Voxels, NetworkShape, Degradation], Voxels]


def shipped_parts(*, thick: bool) -> Iterator[tuple[str, Estimate]]:
    """The shipped weights, whole and in part."""
    network = shipped_network(thick=thick)
    whole, mirrored = Restoration(network), Restoration(network.flipped())

    def twice(coarse: Voxels, shape: NetworkShape, recipe: Degradation) -> Voxels:
        # A fine volume is its own interpolation: the network adds to it, and the correction returns to the scan.
        again = whole.uncorrected(whole(coarse, shape, recipe), shape, Degradation(name="fine"))
        return correct(again, coarse, recipe, noise=noise_level(coarse, shape, recipe)).voxels

    def chosen(coarse: Voxels, shape: NetworkShape, recipe: Degradation) -> Voxels:
        return shipped_expert(recipe)(coarse, shape, recipe)

    def chosen_mirrored(coarse: Voxels, shape: NetworkShape, recipe: Degradation) -> Voxels:
        return Restoration(shipped_network(thick=thick, known=recipe).flipped())(coarse, shape, recipe)

    yield "cubic with correction, no network", with_correction
    yield "shipped weights: experts", chosen
    yield "experts, ensemble of 8 mirror images", chosen_mirrored
    yield "shipped weights: one network for all", whole
    yield "without the correction of the output", whole.uncorrected
    yield "applied twice, corrected between", twice
    yield "one network for all, ensemble of 8 mirror images", mirrored


def trained(name: str, overrides: Sequence[str], folder: Path, steps: int = STEPS) -> NetworkFile:
    """Train a variant of the preset universal2x in this process."""
    config, path = load_config("universal2x", [*overrides, f"training.steps={steps}"]), folder / f"{name}.keras"
    for _ in run_training(TrainingJob(config, training_volumes(config), path)):
        pass
    return read_network(path)


def with_correction(coarse: Voxels, shape: NetworkShape, recipe: Degradation) -> Voxels:
    """Interpolate a scan and correct that by its acquisition."""
    return consistent_interpolation(coarse, shape, recipe, noise_level(coarse, shape, recipe))


def gains(estimate: Estimate, matrix: Matrix = MATRIX, only: str | None = None) -> dict[str, str]:
    """Score an estimate: for each acquisition and noise, the mean gain over cubic of the volumes, dB."""
    found: dict[str, list[float]] = {}
    for _, fine, _ in scans(matrix, ("MR_Gd", "FLAIR")):
        shape, mask = NetworkShape(*fine.shape), foreground_mask(fine)
        for acquisition, recipe in matrix.recipes.items():
            for sigma in matrix.noise:
                if only in {None, acquisition}:
                    noise = Noise(kind="rician", sigma=sigma)
                    coarse = degrade(fine, recipe.model_copy(update={"noise": noise}), 1)
                    base = psnr(fine, resample(coarse, shape), mask)
                    gain = psnr(fine, estimate(coarse, shape, recipe), mask) - base
                    found.setdefault(f"{acquisition}, noise {sigma:.0%}", []).append(gain)
    return {column: f"{np.mean(values):+.2f}" for column, values in found.items()}


def score_trained(add: Callable[[str, dict[str, str]], None]) -> None:
    """Train the variants and add a row for each."""
    with tempfile.TemporaryDirectory() as folder:
        variants = {"by its input, as shipped": [], "not conditioned": ["network.input=interpolated"]}
        for name, overrides in variants.items():
            network = trained(name, overrides, Path(folder))
            add(f"{STEPS} steps: one network, {name}", gains(Restoration(network)))
    score_experts(f"{STEPS} steps: experts", STEPS, add)


def score_experts(row: str, steps: int, add: Callable[[str, dict[str, str]], None], *overrides: str) -> None:
    """Train an expert for each acquisition and add their gains as a row."""
    for acquisition, preset in ACQUISITIONS.items():
        chosen = [f"augmentation.{key}=[{preset}]" for key in ("acquisitions", "assumed")]
        expert = [f"degradation={preset}", *chosen, "augmentation.mistaken=0", *overrides]
        with tempfile.TemporaryDirectory() as folder:
            network = trained(preset, expert, Path(folder), steps)
        add(row, gains(Restoration(network), only=acquisition))


def score_capacity(add: Callable[[str, dict[str, str]], None]) -> None:
    """Train wider experts, and experts for longer, and add a row for each."""
    score_experts(f"{STEPS} steps: experts, 1.8 times the multiply-adds", STEPS, add, WIDE)
    score_experts(f"{2 * STEPS} steps: experts", 2 * STEPS, add)


def main(parts: Sequence[str]) -> None:
    kept = RESULTS / "ablation.json"
    rows: dict[str, dict[str, str]] = json.loads(kept.read_text()) if kept.exists() else {}

    def add(name: str, row: dict[str, str]) -> None:
        rows[name] = rows.get(name, {}) | row
        print(name, row, flush=True)

    for part, matrix in {"2x": MATRIX, "thick": THICK}.items():
        if part in parts:
            for name, estimate in shipped_parts(thick=part == "thick"):
                add(name, gains(estimate, matrix))
    if "trained" in parts:
        score_trained(add)
    if "capacity" in parts:
        score_capacity(add)
    columns = [
        f"{name}, noise {sigma:.0%}" for each in (MATRIX, THICK) for name in each.recipes for sigma in each.noise
    ]
    lines = [
        "# Parts of the restoration, and other ways to go by the acquisition",
        "",
        f"Made by `python -m benchmarks.ablation` on {processor()}. Gains over cubic in dB, means of MR_Gd and FLAIR,"
        " the acquisition known: 2x along all axes, and slices 3, 4 and 6 times as thick.",
        "",
        f"| | {' | '.join(columns)} |",
        f"|{' --- |' * (1 + len(columns))}",
        *(f"| {name} | {' | '.join(row.get(column, '') for column in columns)} |" for name, row in rows.items()),
    ]
    kept.write_text(json.dumps(rows, indent=2) + "\n")
    (RESULTS / "ablation.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:] or ["2x", "thick", "trained", "capacity"])
