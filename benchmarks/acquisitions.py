"""Do no harm: `python -m benchmarks.acquisitions`, the shipped weights on scans made by every acquisition.

Every volume is degraded twofold by each acquisition and by noise, and restored twice: with nothing known, and with the
acquisition given. PSNR stands next to cubic interpolation and to cubic with the correction by the true acquisition. The
volumes are the scans in the folder VOXLIFT_DATA or ../shared/data, on which nothing is trained. Writes
`results/acquisitions.json` and `.md`; ends with status 1 if a cell with nothing known is worse than cubic by more than
0.2 dB.
"""

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.robustness import RESULTS, scans
from configs.axes import NetworkShape
from configs.degradation import AxisDegradation, Degradation, Noise, isotropic
from tasks.artifacts.shipped import shipped_network
from tasks.imaging.acquisition import default_acquisition
from tasks.imaging.consistency import correct
from tasks.imaging.degrade import degrade
from tasks.imaging.noise import scan_noise
from tasks.imaging.resample import resample
from tasks.scoring.metrics import foreground_mask, psnr
from tasks.sharding.restore import Restorer, coarse_volume
from tasks.volume.grid import network_axes
from tasks.volume.intensity import CLIP, Intensity, find_intensity, normalise

ACQUISITIONS = {
    "k-space": AxisDegradation(factor=2, profile="kspace"),
    "k-space, Hamming": AxisDegradation(factor=2, profile="kspace", apodisation="hamming"),
    "box": AxisDegradation(factor=2),
    "FWHM 1": AxisDegradation(factor=2, blur_fwhm=1),
    "FWHM 1.5": AxisDegradation(factor=2, blur_fwhm=1.5),
    "FWHM 2": AxisDegradation(factor=2, blur_fwhm=2),
    "FWHM 3": AxisDegradation(factor=2, blur_fwhm=3),
    "zero-filled by 1.5": AxisDegradation(factor=2, profile="kspace", zero_filling=1.5),
}
NOISE = (0.0, 0.02, 0.05)
STRIDE = 16  # of the network along every axis, at most
WORST = -0.2  # dB over cubic

Voxels = NDArray[np.float32]


@dataclass(frozen=True)
class Cell:
    """Scores of one volume, acquisition and noise; PSNR in dB over cubic."""

    volume: str
    acquisition: str
    noise: float
    cubic: float
    corrected: float
    default: float
    known: float


class Restoration:
    """The shipped network on whole volumes, by the functions that workers use."""

    def __init__(self) -> None:
        network = shipped_network()
        self._restorer = Restorer(network.name, network.content, os.cpu_count() or 1)

    def __call__(self, coarse: Voxels, shape: NetworkShape, recipe: Degradation) -> Voxels:
        """Restore a normalised volume that `recipe` has made, as far as is known, and correct it."""
        volume = coarse_volume(coarse, shape, Intensity(0, 1), recipe)
        depth, height, width = ((-STRIDE, size + STRIDE + -size % STRIDE) for size in shape)
        restored = self._restorer.restored(volume.input_window((depth, height, width)), volume.intensity)
        inside = tuple(slice(STRIDE, STRIDE + size) for size in shape)
        return correct(restored[inside], coarse, recipe, noise=scan_noise(coarse)).voxels


def cells(name: str, fine: Voxels, lowest: float, restore: Restoration) -> list[Cell]:
    """Score one normalised volume, `[depth, height, width]`, by every acquisition and noise."""
    shape, mask = NetworkShape(*fine.shape), foreground_mask(fine)
    found = []
    for acquisition, axis in ACQUISITIONS.items():
        recipe = isotropic(acquisition, axis)
        for sigma in NOISE:
            noise = Noise(kind="rician", sigma=sigma)
            coarse = degrade(fine, recipe.model_copy(update={"noise": noise}), 1)
            cubic = resample(coarse, shape)
            assumed = default_acquisition(isotropic("model", ACQUISITIONS["k-space"]), lowest)
            estimates = {
                "corrected": correct(cubic, coarse, recipe, noise=sigma).voxels,
                "default": restore(coarse, shape, assumed.degradation(shape, NetworkShape(*coarse.shape))),
                "known": restore(coarse, shape, recipe),
            }
            base = psnr(fine, cubic, mask)
            gains = {key: round(psnr(fine, voxels, mask) - base, 2) for key, voxels in estimates.items()}
            found.append(Cell(name, acquisition, sigma, round(base, 2), **gains))
            print(found[-1], flush=True)
    return found


def main() -> None:
    restore, found = Restoration(), []
    for name, volume in scans():
        voxels = volume.voxels if volume.voxels.ndim == 3 else volume.voxels[..., 0]
        fine = network_axes(volume.grid).to_network(voxels)
        fine = fine[tuple(slice(size // 2 * 2) for size in fine.shape)]
        normal = normalise(np.ascontiguousarray(fine), find_intensity(fine), clip=CLIP)
        found += cells(name, normal, float(fine.min()), restore)
    default = np.array([cell.default for cell in found])
    summary = (
        f"Nothing known, {len(found)} cells: worst {default.min():+.2f} dB, {np.mean(default < 0):.1%} below cubic,"
        f" mean {default.mean():+.2f} dB."
    )
    titles = ["volume", "acquisition", "noise", "cubic [dB]", "cubic with correction", "nothing known", "known"]
    lines = [
        "# The shipped weights on scans made by every acquisition",
        "",
        f"Made by `python -m benchmarks.acquisitions` on {_processor()}. Gains in dB over cubic; {summary}",
        "",
        f"| {' | '.join(titles)} |",
        f"|{' --- |' * len(titles)}",
        *(f"| {' | '.join(map(str, asdict(cell).values()))} |" for cell in found),
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "acquisitions.json").write_text(json.dumps([asdict(cell) for cell in found], indent=2) + "\n")
    (RESULTS / "acquisitions.md").write_text("\n".join(lines) + "\n")
    print(summary)
    if default.min() < WORST:
        raise SystemExit(f"worse than cubic by more than {-WORST} dB")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(": ")[1] for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0]}, {len(names)} threads" if names else platform.machine()


if __name__ == "__main__":
    main()
